#!/usr/bin/env bash
# images.sh [debian] [openclaw] [rust] [caddy] [traefik]: builds images for the tests on this machine, without a registry. Prints their names.
#
#   loopgate-test/debian    Debian bookworm with curl, HAProxy and iproute2: the base of all other containers of the tests
#   loopgate-test/openclaw  the file system of OpenClaw's image without OpenClaw: mount a directory of openclaw.sh on /openclaw
#   loopgate-test/rust      this machine's Rust toolchain and a C compiler, for docker/Dockerfile
#   loopgate-test/caddy     like Caddy's image
#   loopgate-test/traefik   like Traefik's image
#
# The names differ from those of the real images, so that no image of a developer is replaced.
. "$(dirname "$0")/lib.sh"

mirror=${TEST_MIRROR:-http://deb.debian.org/debian}

# Builds with the engine's built-in builder, because buildx may be missing.
build() { DOCKER_BUILDKIT=0 docker build --quiet --tag "$1" "$2" >&2; }

debian() {
  apt_install debootstrap
  local root=$work/root
  debootstrap --variant=minbase --include=ca-certificates,curl,haproxy,iproute2 bookworm "$root" "$mirror" >"$work/log" ||
    { tail -n 20 "$work/log" >&2; die "debootstrap failed"; }
  printf 'Types: deb\nURIs: %s\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "$mirror" >"$root/etc/apt/sources.list.d/debian.sources"
  rm "$root/etc/apt/sources.list"
  # Build networks may intercept TLS, so containers trust the CAs that this machine trusts.
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  tar -C "$root" --numeric-owner -c --exclude=./var/cache/apt --exclude=./var/lib/apt/lists --exclude=./usr/share/doc \
    --exclude=./usr/share/man --exclude=./usr/share/locale --exclude=./dev . |
    docker import --change 'CMD ["bash"]' - "loopgate-test/debian" >/dev/null
}

openclaw() {
  cat >"$work/Dockerfile" <<'DOCKERFILE'
FROM loopgate-test/debian
RUN useradd --uid 1000 --create-home node && install -d -o node -g node /home/node/.openclaw && \
    ln -s /openclaw/node_modules/openclaw /app && \
    ln -s /openclaw/node_modules/node/bin/node /usr/local/bin/node && \
    printf '#!/bin/sh\nexec node /app/openclaw.mjs "$@"\n' >/usr/local/bin/openclaw && chmod 755 /usr/local/bin/openclaw
USER node
# Not WORKDIR: it would create a directory in place of a link whose target is mounted later.
CMD ["node", "/app/openclaw.mjs", "gateway", "--allow-unconfigured"]
DOCKERFILE
  build loopgate-test/openclaw "$work"
}

rust() {
  local toolchain=${RUST_TOOLCHAIN:-$(rustc --print sysroot)}
  tar -cf "$work/toolchain.tar" --owner=0 --group=0 --exclude=./lib/rustlib/src --transform 's,^\.,usr/local,S' \
    -C "$toolchain" ./bin ./lib ./libexec
  cat >"$work/Dockerfile" <<'DOCKERFILE'
FROM loopgate-test/debian
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
# Installing the compiler updates ca-certificates, which replaces the bundle.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ADD toolchain.tar /
DOCKERFILE
  cp /etc/ssl/certs/ca-certificates.crt "$work/"
  build loopgate-test/rust "$work"
}

caddy() {
  cp "$("$(dirname "$0")/fronts.sh")/bin/caddy" "$work/"
  cat >"$work/Dockerfile" <<'DOCKERFILE'
FROM loopgate-test/debian
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libcap2-bin wget && rm -rf /var/lib/apt/lists/*
COPY caddy /usr/bin/caddy
RUN setcap cap_net_bind_service=+ep /usr/bin/caddy
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
DOCKERFILE
  build loopgate-test/caddy "$work"
}

traefik() {
  cp "$("$(dirname "$0")/fronts.sh")/bin/traefik" "$work/"
  printf 'FROM loopgate-test/debian\nCOPY traefik /usr/local/bin/traefik\n' >"$work/Dockerfile"
  build loopgate-test/traefik "$work"
}

[ $# -gt 0 ] || set -- debian openclaw
# loopgate-test/debian is the base of the others, so it comes first.
set -- debian "${@/debian/}"

# Two runs at the same time would build the same images.
exec 8>"$cache/images.lock"
flock 8
for image; do
  [ -n "$image" ] || continue
  [ "$(type -t "$image")" = function ] || die "no such image: $image"
  if ! docker image inspect "loopgate-test/$image" >/dev/null 2>&1; then
    say "making the image loopgate-test/$image"
    work=$(mktemp -d -p "$cache")
    trap 'rm -rf "$work"' EXIT
    "$image"
    rm -rf "$work"
  fi
  echo "loopgate-test/$image"
done
