#!/usr/bin/env bash
# arm64.sh: installs Debian's cross compiler, QEMU and Rust's standard library for 64-bit Arm. Prints a directory whose bin/ has a cargo and a
# rustc for the target aarch64-unknown-linux-gnu.
#
# It is the toolchain in use if rustup can add the target to it. If not (no rustup, or its server can't be reached), and always with
# RUST_SRC=debian, the library is built from the sources of the same version in Debian's backports.
. "$(dirname "$0")/lib.sh"

target=aarch64-unknown-linux-gnu
mirror=${TEST_MIRROR:-http://deb.debian.org/debian}
version=$(rustc --version | cut -d ' ' -f 2)
sysroot=$(rustc --print sysroot)

by_rustup() {
  [ "${RUST_SRC:-}" != debian ] && command -v rustup >/dev/null || return
  # rustup may wait long for a server that can't be reached.
  timeout 120 rustup target add "$target" >&2 || return
  [ -d "$sysroot/lib/rustlib/$target/lib" ]
}

# Unpacks Debian's rust-src into src/.
sources() {
  local here=$PWD keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  mkdir -p lists/partial archives/partial src
  echo "deb [signed-by=$keyring] $mirror trixie-backports main" >sources.list
  # apt with separate sources and lists, so that those of the machine stay unchanged.
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$here/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$here/lists"
    -o "Dir::Cache::archives=$here/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
  "${apt[@]}" update
  "${apt[@]}" download "rust-src=$version+*" || die "Debian's backports have no sources of Rust $version, and rustup could not add $target"
  dpkg-deb -x rust-src_*.deb src
  rm -rf lists archives sources.list rust-src_*.deb
}

# Makes a sysroot of links to the toolchain in use, and adds the target's library, the only part that rustc needs in it.
toolchain() {
  sources
  # Built with the flags of Rust's releases, which RUSTC_BOOTSTRAP permits on a stable compiler. Dependencies come from crates.io, because
  # Debian's vendor directory lacks some of them.
  RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zforce-unstable-if-unmarked CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    __CARGO_DEFAULT_LIB_METADATA=loopgate-tests \
    cargo build --quiet --locked --profile dist --package sysroot --features backtrace --target "$target" --target-dir built \
    --manifest-path src/usr/src/rustc-*/library/Cargo.toml
  local rustlib=lib/rustlib/$target/lib
  mkdir -p bin "$rustlib"
  cp built/"$target"/dist/deps/*.rlib "$rustlib"
  rm -rf built src
  for directory in "$sysroot"/lib/rustlib/*/; do
    [ -e "lib/rustlib/$(basename "$directory")" ] || ln -s "${directory%/}" lib/rustlib/
  done
  ln -s "$sysroot/bin/cargo" bin/cargo
  printf '#!/bin/sh\nexec "%s/bin/rustc" --sysroot "${0%%/*}/.." "$@"\n' "$sysroot" >bin/rustc
  chmod 755 bin/rustc
}

[ "$(uname -m)" != aarch64 ] || die "this machine is a 64-bit Arm itself"
apt_install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
if by_rustup; then
  echo "$sysroot"
else
  tree "arm64-rust-$version-1" toolchain
fi
