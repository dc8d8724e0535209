#!/usr/bin/env bash
# docker/profile.sh: how loopgate behaves under load, for the compiler (profile-guided optimization).
#
# It builds loopgate with counters, drives the benchmark's traffic through it for a few seconds, and leaves docker/loopgate.profdata, which
# docker/Dockerfile and tests/bench/run use where it is. Releases are made with one; without it everything works, and a request costs
# about a sixth more CPU time. What the compiler finds changed since is compiled as if there were no profile.
cd "$(dirname "$0")/.."
. tests/setup/lib.sh

command -v cc >/dev/null && command -v make >/dev/null || apt_install gcc libc6-dev make
command -v h2load >/dev/null || apt_install nghttp2-client
target=$(uname -m)-unknown-linux-gnu
tools=$(rustc --print sysroot)/lib/rustlib/$target/bin
[ -x "$tools/llvm-profdata" ] || rustup component add llvm-tools

# A directory of its own: its libraries are others. Not static, which the counters' runtime can't be.
export CARGO_TARGET_DIR=$PWD/target/profile
counts=$CARGO_TARGET_DIR/counts
rm -rf "$counts"
say "building with counters"
RUSTFLAGS="-C profile-generate=$counts" cargo build --quiet --release --locked --target "$target"
cargo build --quiet --release --locked --manifest-path tests/bench/Cargo.toml
say "measuring"
"$CARGO_TARGET_DIR/release/loopgate-bench" compare --loopgate "$CARGO_TARGET_DIR/$target/release/loopgate" --peers loopgate --rounds 1 \
  --seconds 1 --scenarios h1,h2,hs-full,hs-resumed,ws,ws-bulk,down,up,sse >/dev/null
ls "$counts"/*.profraw >/dev/null || die "loopgate left no counts"
# Not sparse: what never ran is to be known for cold.
"$tools/llvm-profdata" merge -o docker/loopgate.profdata "$counts"
say "docker/loopgate.profdata is made"
