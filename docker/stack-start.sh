#!/bin/bash
# Runs the gateway and loopgate in one container, for stack.yaml. The container ends if either of them ends.
set -euo pipefail

# Only the initial configuration: OpenClaw keeps its own copy with its state and changes that. trustedProxies must stay ["127.0.0.2"]
# (`loopgate check` verifies it), and a public host name must be in gateway.controlUi.allowedOrigins.
mkdir -p "$HOME/.openclaw"
[ -e "$HOME/.openclaw/openclaw.json" ] || cp /etc/claw/openclaw.json "$HOME/.openclaw/openclaw.json"

token=$(cat /run/secrets/gateway_token)
loopgate run &
loopgate=$!
# In auth.mode "trusted-proxy" (docs/sign-in.md) the gateway refuses to start with a token.
grep -q trusted-proxy "$HOME/.openclaw/openclaw.json" || export OPENCLAW_GATEWAY_TOKEN=$token
node /app/openclaw.mjs gateway run &
gateway=$!

# Stops loopgate first, so that requests in progress can finish.
stop() {
  kill -TERM "$loopgate" 2>/dev/null || true
  wait "$loopgate" || true
  kill -TERM "$gateway" 2>/dev/null || true
  wait "$gateway" || true
}
trap 'stop; exit 0' TERM INT
status=0
wait -n || status=$?
stop
exit "$status"
