#!/usr/bin/env bash
# openclaw.sh VERSION: installs the OpenClaw gateway from npm, with the Node.js that it needs. Prints the directory that contains the gateway
# in node_modules/openclaw and its Node.js in node_modules/node/bin/node.
. "$(dirname "$0")/lib.sh"
version=${1:?which version of OpenClaw}

case $version in
  2026.[1-4].*) node=22 ;;
  *) node=24 ;;
esac

install() {
  # Node.js first: npm runs OpenClaw's install scripts with the first node in PATH, and they refuse an old one.
  npm install --no-audit --no-fund --loglevel=error --prefix . "node@$node"
  export PATH="$PWD/node_modules/node/bin:$PATH"
  # libsignal is overridden because old versions take it from a git URL, which npm can't always reach. The gateway does not need it.
  cat >package.json <<JSON
{ "private": true, "dependencies": { "openclaw": "$version", "node": "$node" }, "overrides": { "libsignal": "npm:libsignal@2.0.1" } }
JSON
  npm install --no-audit --no-fund --loglevel=error
  test -f node_modules/openclaw/openclaw.mjs
}
tree "openclaw-$version" install
