#!/bin/sh
# docker/rustflags.sh ARCHITECTURE: the RUSTFLAGS that a release is compiled with, for docker/Dockerfile and tests/bench/run, with what
# docker/profile.sh has left beside this file, if it has. The target has to be named to cargo: build scripts can't be linked like this.
cd "$(dirname "$0")" || exit
# Packed relocations save half a megabyte on amd64. Rust makes static programs for arm64 that run at a fixed address: they have next to none.
flags="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
made=
if [ -f loopgate.profdata ]; then
  # An older compiler could not even read it.
  if [ "$(rustc --version)" = "$(cat loopgate.rustc)" ]; then
    made=yes
    flags="$flags -C profile-use=$PWD/loopgate.profdata"
  else
    echo "docker/rustflags.sh: the profile is left out, it is another compiler's: make it anew by docker/profile.sh" >&2
  fi
fi
# The order is of amd64's functions, and only LLVM's linker knows the option. It comes with Rust, and is not taken by itself where another
# compiler than `cc` links.
lld=$(rustc --print sysroot)/lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld
if [ -n "$made" ] && [ -f loopgate.order ] && [ -x "$lld/ld.lld" ] && { [ "$1" = amd64 ] || [ "$1" = x86_64 ]; }; then
  flags="$flags -C link-arg=-B$lld -C link-arg=-fuse-ld=lld"
  flags="$flags -C link-arg=-Wl,--symbol-ordering-file=$PWD/loopgate.order -C link-arg=-Wl,--no-warn-symbol-ordering"
fi
echo "$flags"
