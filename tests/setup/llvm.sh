#!/usr/bin/env bash
# llvm.sh: unpacks llvm-profdata for rustc's version of LLVM from Debian forky's packages, and prints its path. docker/profile.sh uses it if
# rustup can't install llvm-tools. Installs nothing on this machine.
. "$(dirname "$0")/lib.sh"

version=$(rustc --version --verbose | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

llvm() {
  unpack_forky "llvm-$version"
  forky_program "usr/lib/llvm-$version/bin/llvm-profdata"
  bin/llvm-profdata --version >/dev/null
  # The other programs are large.
  find "usr/lib/llvm-$version/bin" usr/bin usr/share -type f ! -name llvm-profdata -delete
}

[ "$(uname -m)" = x86_64 ] || die "only for amd64"
tree "llvm-$version" llvm >/dev/null
echo "$cache/llvm-$version/bin/llvm-profdata"
