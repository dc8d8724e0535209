#!/usr/bin/env bash
# docker/profile.sh: records a profile of loopgate under load, for profile-guided optimization.
#
# The script builds loopgate with counters, sends the benchmark's traffic through it for a few seconds, and writes docker/loopgate.profdata. On
# amd64 it then records which functions run until the first response, and writes docker/loopgate.order: the linker places these functions first,
# so that fewer pages of the program are in memory. docker/Dockerfile and tests/bench/run use both files if they exist. Releases are built with
# them; without them a request costs a tenth more CPU time. Functions that changed later are compiled without a profile. Both files are ignored
# if the compiler is not the one in docker/loopgate.rustc. $LLVM_PROFDATA may name an llvm-profdata for rustc's version of LLVM.
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
profdata=${LLVM_PROFDATA:-$tools/llvm-profdata}
if ! command -v "$profdata" >/dev/null && ! rustup component add llvm-tools; then
  profdata=$(tests/setup/llvm.sh) || die "llvm-profdata is missing: state the path of one for rustc's LLVM in LLVM_PROFDATA"
fi

shipped=${CARGO_TARGET_DIR:-$PWD/target}/shipped
# A separate target directory, because the flags differ. The binary isn't static, because the runtime of the counters can't be linked statically.
export CARGO_TARGET_DIR=$PWD/target/profile
counts=$CARGO_TARGET_DIR/counts
bench=$CARGO_TARGET_DIR/release/loopgate-bench
# Cargo does not notice changes of these files, so binaries that were compiled with them are removed too.
made=(docker/loopgate.profdata docker/loopgate.order docker/loopgate.rustc)
rm -rf "$counts" "$shipped" "${made[@]}"
state=$(mktemp -d)
finished=
# An incomplete profile must not be used.
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$state"; [ -n "$finished" ] || rm -f "${made[@]}"' EXIT
say "building with counters"
RUSTFLAGS="-C profile-generate=$counts" cargo build --quiet --release --locked --target "$target"
cargo build --quiet --release --locked --manifest-path tests/bench/Cargo.toml
say "measuring"
# With the sandbox loopgate could not write its counts.
LOOPGATE_SANDBOX=off "$bench" compare --loopgate "$CARGO_TARGET_DIR/$target/release/loopgate" --peers loopgate --rounds 1 \
  --seconds 1 --scenarios h1,h2,hs-full,hs-resumed,ws,ws-bulk,down,up,sse >/dev/null
ls "$counts"/*.profraw >/dev/null || die "loopgate left no counts"
# Without --sparse, so that functions that never ran are recorded as cold.
"$profdata" merge -o docker/loopgate.profdata "$counts"
"$profdata" show --covered docker/loopgate.profdata >"$state/covered"
grep -q 8loopgate5proxy7request "$state/covered" || die "the profile has the start only, not the load"
rustc --version >docker/loopgate.rustc
say "docker/loopgate.profdata written"
if [ "$architecture" != x86_64 ]; then finished=yes; exit; fi

say "building with the profile"
# The order file is empty for now. It must exist, so that the flags are those of tests/bench/run, which then reuses the libraries.
touch docker/loopgate.order
flags=$(docker/rustflags.sh "$architecture")
RUSTFLAGS=$flags CARGO_TARGET_DIR=$shipped \
  cargo rustc --quiet --release --locked --target "$target" --bin loopgate -- -C strip=none 2>"$state/log" || die "$(cat "$state/log")"
say "recording the start"
gateway=127.0.0.1:18797 listen=127.0.0.1:18798
"$bench" backend $gateway &
# Callgrind lists the functions that ran, including those of C libraries, which have no counters.
valgrind --quiet --tool=callgrind --demangle=no --callgrind-out-file="$state/ran" "$shipped/$target/release/loopgate" run \
  --docker off --admin off --gateway $gateway --listen $listen --state-dir "$state/state" 2>"$state/log" &
curl --noproxy "*" --silent --show-error --insecure --http1.1 --retry 60 --retry-delay 1 --retry-all-errors --output /dev/null https://$listen/ \
  2>"$state/curl" || die "no answer: $(cat "$state/curl" "$state/log")"
kill $!
wait $! || die "loopgate failed: $(cat "$state/log")"
# Then the functions that ran under load.
{
  sed -nE "s/^c?fn=\([0-9]+\) ([^']+).*/\1/p" "$state/ran"
  "$profdata" show --covered docker/loopgate.profdata | sed 's/.*;//'
} | awk '!seen[$0]++' >docker/loopgate.order
finished=yes
say "docker/loopgate.order written"
