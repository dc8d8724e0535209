#!/usr/bin/env bash
# compose.sh [v1] [v2]: installs one or both generations of Docker Compose (default: both), and prints the command of each.
#
#   v1  docker-compose 1.29, the last one in Python, which Debian bookworm has
#   v2  the plugin of the docker command, with buildx; from Debian trixie's packages if it is missing (they need only glibc)
. "$(dirname "$0")/lib.sh"

plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins

v1() {
  command -v docker-compose >/dev/null || apt_install docker-compose
  command -v docker-compose
}

trixie() {
  local here=$PWD keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror=${TEST_MIRROR:-http://deb.debian.org/debian}
  mkdir -p lists/partial archives/partial
  echo "deb [signed-by=$keyring] $mirror trixie main" >sources.list
  # apt with separate sources and lists, so that those of the machine stay unchanged.
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$here/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$here/lists"
    -o "Dir::Cache::archives=$here/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
  "${apt[@]}" update
  "${apt[@]}" download docker-compose docker-buildx
  for package in *.deb; do dpkg-deb -x "$package" .; done
  rm -rf lists archives ./*.deb
}

v2() {
  if ! docker compose version >/dev/null 2>&1; then
    local packages
    packages=$(tree compose-trixie trixie)
    mkdir -p "$plugins"
    # Links, so that deleting the cache disables them. An installed buildx plugin is not replaced.
    ln -sfn "$packages"/usr/libexec/docker/cli-plugins/docker-compose "$plugins/docker-compose"
    [ -e "$plugins/docker-buildx" ] || ln -sfn "$packages"/usr/libexec/docker/cli-plugins/docker-buildx "$plugins/docker-buildx"
  fi
  echo "docker compose"
}

[ $# -gt 0 ] || set -- v1 v2
for generation; do
  case $generation in
    v1 | v2) "$generation" ;;
    *) die "no such generation of compose: $generation" ;;
  esac
done
