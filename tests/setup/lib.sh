# Functions shared by the scripts of tests/setup. Sourced, not run.
#
# Each script installs one thing once, and prints only its path to standard output. Progress goes to standard error.
# Variables for tests begin with TEST_: loopgate refuses unknown variables that begin with LOOPGATE_.
set -euo pipefail

cache=${TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/loopgate-tests}
mkdir -p "$cache"

say() { echo "setup: $*" >&2; }
die() { echo "setup: $*" >&2; exit 1; }

# as_root COMMAND...: runs a command as root.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# apt_install PACKAGE...: installs the packages that are missing.
apt_install() {
  local package missing=()
  for package; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || die "no apt-get here; install by hand: ${missing[*]}"
  say "apt-get install ${missing[*]}"
  (
    # One apt at a time: parallel scripts would fail on dpkg's lock.
    flock 9
    export DEBIAN_FRONTEND=noninteractive
    log=$cache/apt.log
    as_root apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 &&
      as_root apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1 ||
      { tail -n 20 "$log" >&2; die "apt-get failed (its log: $log)"; }
  ) 9>"$cache/apt.lock"
}

# tree NAME FUNCTION: prints the directory $cache/NAME. If it is missing, FUNCTION makes its content, in another directory that is renamed at
# the end, so that an interrupted installation is never used.
tree() {
  local name=$1 make=$2
  (
    flock 9
    [ -d "$cache/$name" ] && exit
    rm -rf "$cache/$name.part"
    mkdir -p "$cache/$name.part"
    say "installing $name"
    (cd "$cache/$name.part" && "$make" >&2)
    mv "$cache/$name.part" "$cache/$name"
    say "installed $name"
  ) 9>"$cache/$name.lock"
  echo "$cache/$name"
}

# unpack_forky PACKAGE...: unpacks these packages of Debian forky for amd64, and the libraries that they depend on, into the current directory.
# Installs nothing on this machine.
unpack_forky() {
  local here=$PWD mirror=${TEST_MIRROR:-http://deb.debian.org/debian} package
  mkdir -p lists/partial archives/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror forky main" >sources.list
  # apt with separate sources, lists and status, so that those of the machine stay unchanged. Forky's lists may be past their Valid-Until.
  local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$here/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$here/lists"
    -o Dir::State::status=/dev/null -o "Dir::Cache::archives=$here/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false)
  "${apt[@]}" update
  # apt resolves the dependencies, which change with each upload.
  "${apt[@]}" install --download-only --no-install-recommends --yes "$@"
  for package in "$@" lib; do
    for package in archives/"$package"*.deb; do dpkg-deb -x "$package" .; done
  done
  rm -rf lists archives sources.list
}

# forky_program PATH: makes a script in bin/ that runs the program at PATH, which unpack_forky has unpacked. The program runs with its own
# loader and libraries, which are newer than this machine's.
forky_program() {
  local name=${1##*/}
  mkdir -p bin
  cat >"bin/$name" <<SCRIPT
#!/bin/sh
tree=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")
exec "\$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "\$tree/usr/lib/x86_64-linux-gnu" "\$tree/$1" "\$@"
SCRIPT
  chmod 755 "bin/$name"
}
