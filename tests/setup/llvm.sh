#!/usr/bin/env bash
# llvm.sh: llvm-profdata for the LLVM of rustc, from Debian forky's packages; prints its path. For docker/profile.sh where rustup can't
# install it. Installs nothing on this machine.
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
