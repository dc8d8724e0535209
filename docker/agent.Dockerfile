# Adds loopgate to an agent's image: programs in it reach the gateway at ws://127.0.0.1:18789, as local clients.
ARG LOOPGATE_IMAGE=ghcr.io/loopgate/loopgate:0.1.0
ARG AGENT_BASE=ghcr.io/openclaw/openclaw:2026.9.6
FROM ${LOOPGATE_IMAGE} AS loopgate
FROM ${AGENT_BASE}
COPY --from=loopgate /loopgate /usr/local/bin/loopgate
ENTRYPOINT ["/usr/local/bin/loopgate", "exec", "--"]
