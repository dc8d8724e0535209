#!/usr/bin/env bash
# fuzzer.sh: installs cargo-fuzz, and the C++ compiler that its runtime needs. Prints the directory that contains bin/cargo-fuzz.
. "$(dirname "$0")/lib.sh"

apt_install g++
install() { cargo install --quiet --locked --root . --target-dir target cargo-fuzz@0.13.2 && rm -rf target; }
tree fuzzer-1 install
