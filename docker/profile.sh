#!/usr/bin/env bash
# docker/profile.sh: how loopgate behaves under load, for the compiler and the linker (profile-guided optimization).
#
# It builds loopgate with counters, drives the benchmark's traffic through it for a few seconds, and leaves docker/loopgate.profdata. For
# amd64 it then sees what runs until the first request is answered, and leaves docker/loopgate.order, by which that comes first in the
# program, so that little else of it has to be in memory. docker/Dockerfile and tests/bench/run use what is there of the two. Releases are made
# with them; without them everything works, and a request costs a tenth more CPU time. What the compiler finds changed since is compiled as if
# there were no profile, and another compiler than docker/loopgate.rustc names does without both.
cd "$(dirname "$0")/.."
. tests/setup/lib.sh

command -v cc >/dev/null && command -v make >/dev/null || apt_install gcc libc6-dev make
command -v h2load >/dev/null || apt_install nghttp2-client
architecture=$(uname -m)
if [ "$architecture" = x86_64 ]; then
  command -v valgrind >/dev/null || apt_install valgrind
  command -v curl >/dev/null || apt_install curl
fi
target=$architecture-unknown-linux-gnu
tools=$(rustc --print sysroot)/lib/rustlib/$target/bin
if [ ! -x "$tools/llvm-profdata" ]; then
  command -v rustup >/dev/null || die "llvm-profdata is missing: it comes with rustup, and has to be that of rustc's own LLVM"
  rustup component add llvm-tools
fi

shipped=${CARGO_TARGET_DIR:-$PWD/target}/shipped
# A directory of its own: its libraries are others. Not static, which the counters' runtime can't be.
export CARGO_TARGET_DIR=$PWD/target/profile
counts=$CARGO_TARGET_DIR/counts
bench=$CARGO_TARGET_DIR/release/loopgate-bench
# Cargo does not see when these change, so what was compiled by older ones goes too.
made=(docker/loopgate.profdata docker/loopgate.order docker/loopgate.rustc)
rm -rf "$counts" "$shipped" "${made[@]}"
state=$(mktemp -d)
finished=
# Half of it is worth nothing, and would be taken for the whole.
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$state"; [ -n "$finished" ] || rm -f "${made[@]}"' EXIT
say "building with counters"
RUSTFLAGS="-C profile-generate=$counts" cargo build --quiet --release --locked --target "$target"
cargo build --quiet --release --locked --manifest-path tests/bench/Cargo.toml
say "measuring"
"$bench" compare --loopgate "$CARGO_TARGET_DIR/$target/release/loopgate" --peers loopgate --rounds 1 \
  --seconds 1 --scenarios h1,h2,hs-full,hs-resumed,ws,ws-bulk,down,up,sse >/dev/null
ls "$counts"/*.profraw >/dev/null || die "loopgate left no counts"
# Not sparse: what never ran is to be known for cold.
"$tools/llvm-profdata" merge -o docker/loopgate.profdata "$counts"
rustc --version >docker/loopgate.rustc
say "docker/loopgate.profdata is made"
if [ "$architecture" != x86_64 ]; then finished=yes; exit; fi

say "building by it"
# Empty for now, so that tests/bench/run goes on with these libraries: the flags are the same.
touch docker/loopgate.order
flags=$(docker/rustflags.sh "$architecture")
RUSTFLAGS=$flags CARGO_TARGET_DIR=$shipped \
  cargo rustc --quiet --release --locked --target "$target" --bin loopgate -- -C strip=none 2>"$state/log" || die "$(cat "$state/log")"
say "watching it start"
gateway=127.0.0.1:18797 listen=127.0.0.1:18798
"$bench" backend $gateway &
# Callgrind lists what ran, that of C libraries too, which have no counters.
valgrind --quiet --tool=callgrind --demangle=no --callgrind-out-file="$state/ran" "$shipped/$target/release/loopgate" run \
  --docker off --admin off --gateway $gateway --listen $listen --state-dir "$state/state" 2>"$state/log" &
curl --noproxy "*" --silent --show-error --insecure --http1.1 --retry 60 --retry-delay 1 --retry-all-errors --output /dev/null https://$listen/ \
  2>"$state/curl" || die "no answer: $(cat "$state/curl" "$state/log")"
kill $!
wait $! || die "loopgate failed: $(cat "$state/log")"
# Then what ran under load.
{
  sed -nE "s/^c?fn=\([0-9]+\) ([^']+).*/\1/p" "$state/ran"
  "$tools/llvm-profdata" show --covered docker/loopgate.profdata | sed 's/.*;//'
} | awk '!seen[$0]++' >docker/loopgate.order
finished=yes
say "docker/loopgate.order is made"
