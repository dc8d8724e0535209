#!/usr/bin/env bash
# peers.sh: today's nginx and HAProxy, from Debian forky's packages. Prints the tree: bin/nginx and bin/haproxy. Installs nothing on this machine.
. "$(dirname "$0")/lib.sh"

mirror=${TEST_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

peers() {
  local here=$PWD name
  mkdir -p lists/partial archives/partial bin
  echo "deb [signed-by=$keyring] $mirror forky main" >sources.list
  # apt with sources, lists and a status of its own; the machine's are not touched. Forky's lists may be past their Valid-Until.
  local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$here/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$here/lists"
    -o Dir::State::status=/dev/null -o "Dir::Cache::archives=$here/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false)
  "${apt[@]}" update
  # apt resolves what they depend on, which changes with each upload; only the libraries of it are needed.
  "${apt[@]}" install --download-only --no-install-recommends --yes nginx haproxy
  for package in archives/{nginx,haproxy,lib}*.deb; do dpkg-deb -x "$package" .; done
  rm -rf lists archives sources.list usr/share
  # Their libraries are newer than this machine's: they run with their own loader.
  for name in nginx haproxy; do
    cat >"bin/$name" <<'SCRIPT'
#!/bin/sh
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" "$tree/usr/sbin/$(basename "$0")" "$@"
SCRIPT
    chmod 755 "bin/$name"
    "bin/$name" -v >/dev/null
  done
}

[ "$(uname -m)" = x86_64 ] || die "only for amd64"
tree peers-1 peers
