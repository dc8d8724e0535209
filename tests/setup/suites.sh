#!/usr/bin/env bash
# suites.sh: installs sslyze, testssl.sh, slowhttptest and the cases of the Autobahn test suite. Prints the directory of the Python environment.
#
# Autobahn's own runner (PyPI: autobahntestsuite) needs Python 2. kosoku runs the same case files, ported to Python 3.
. "$(dirname "$0")/lib.sh"

apt_install curl slowhttptest testssl.sh openssl bsdextrautils dnsutils
install() {
  python3 -m venv .
  # Not bin/pip: the directory is renamed later, and that script has the old path.
  bin/python -m pip install --quiet --disable-pip-version-check kosoku==0.1.0 websockets==17.4 sslyze==6.3.1 nassl==5.4.0
}
tree suites-1 install
