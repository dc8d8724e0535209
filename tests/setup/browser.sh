#!/usr/bin/env bash
# browser.sh: installs Chromium, certutil (to add a trusted CA) and playwright-core (to control Chromium). Prints the directory that contains
# node_modules/playwright-core.
. "$(dirname "$0")/lib.sh"

apt_install chromium libnss3-tools
install() {
  echo '{ "private": true, "dependencies": { "playwright-core": "1.58.2" } }' >package.json
  npm install --no-audit --no-fund --loglevel=error
  test -f node_modules/playwright-core/package.json
}
tree playwright-1.58.2 install
