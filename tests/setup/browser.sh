#!/usr/bin/env bash
# browser.sh: Chromium, certutil to make it trust a CA, and playwright-core to drive it. Prints the tree with node_modules/playwright-core.
. "$(dirname "$0")/lib.sh"

apt_install chromium libnss3-tools
install() {
  echo '{ "private": true, "dependencies": { "playwright-core": "1.58.2" } }' >package.json
  npm install --no-audit --no-fund --loglevel=error
  test -f node_modules/playwright-core/package.json
}
tree playwright-1.58.2 install
