#!/usr/bin/env bash
# suites.sh: sslyze, testssl.sh, slowhttptest, and the cases of the Autobahn test suite. Prints the tree with the Python environment.
#
# Autobahn's own runner (PyPI: autobahntestsuite) wants Python 2, which Debian has no more. kosoku runs the very same case files, put
# into Python 3, with a runner of its own.
. "$(dirname "$0")/lib.sh"

apt_install curl slowhttptest testssl.sh openssl bsdextrautils dnsutils
install() {
  python3 -m venv .
  # Not by bin/pip: the tree is renamed, and a script would name the old place.
  bin/python -m pip install --quiet --disable-pip-version-check kosoku==0.1.0 websockets==17.4 sslyze==6.3.1 nassl==5.4.0
}
tree suites-1 install
