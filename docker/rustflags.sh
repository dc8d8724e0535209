#!/bin/sh
# docker/rustflags.sh ARCHITECTURE: prints the RUSTFLAGS of a release, for docker/Dockerfile and tests/bench/run. They include the profile of
# docker/profile.sh if it exists. Pass --target to cargo, because build scripts can't be linked with these flags.
cd "$(dirname "$0")" || exit
# Packed relocations save half a megabyte on amd64. Static programs for arm64 run at a fixed address and have almost no relocations.
flags="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
made=
if [ -f loopgate.profdata ]; then
  # Other compilers may not be able to read the profile.
  if [ "$(rustc --version)" = "$(cat loopgate.rustc)" ]; then
    made=yes
    flags="$flags -C profile-use=$PWD/loopgate.profdata"
  else
    echo "docker/rustflags.sh: ignoring the profile of another compiler; run docker/profile.sh again" >&2
  fi
fi
# The order file is for amd64, and only LLVM's linker has the option for it. That linker comes with Rust, and must be selected explicitly if
# the linker is not `cc`.
lld=$(rustc --print sysroot)/lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld
if [ -n "$made" ] && [ -f loopgate.order ] && [ -x "$lld/ld.lld" ] && { [ "$1" = amd64 ] || [ "$1" = x86_64 ]; }; then
  flags="$flags -C link-arg=-B$lld -C link-arg=-fuse-ld=lld"
  flags="$flags -C link-arg=-Wl,--symbol-ordering-file=$PWD/loopgate.order -C link-arg=-Wl,--no-warn-symbol-ordering"
fi
echo "$flags"
