#!/usr/bin/env bash
# peers.sh: unpacks the newest nginx and HAProxy from Debian forky's packages. Prints the directory that contains bin/nginx and bin/haproxy.
# Installs nothing on this machine.
. "$(dirname "$0")/lib.sh"

peers() {
  local name
  # The programs need only the libraries of the packages that they depend on.
  unpack_forky nginx haproxy
  rm -rf usr/share
  for name in nginx haproxy; do
    forky_program "usr/sbin/$name"
    "bin/$name" -v >/dev/null
  done
}

[ "$(uname -m)" = x86_64 ] || die "only for amd64"
tree peers-1 peers
