#!/usr/bin/env bash
# forky.sh: makes a directory with the file system of Debian forky, Docker Engine 28.5 and Podman 5.8, and prints its path. Installs nothing on
# this machine. Needs root. Takes two minutes and 1.2 GB the first time.
. "$(dirname "$0")/lib.sh"

mirror=${TEST_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=(docker.io containerd runc docker-cli iptables nftables iproute2 procps kmod xz-utils ca-certificates curl
  podman netavark aardvark-dns passt crun catatonit fuse-overlayfs uidmap conmon golang-github-containers-common util-linux)

forky() {
  local here=$PWD root=$PWD
  # bookworm's debootstrap lacks the script for forky, which is the same as that for sid.
  mkdir .deb && (cd .deb && apt-get -o APT::Sandbox::User=root download -qq debootstrap && dpkg-deb -x debootstrap_*.deb .)
  ln -sfn sid .deb/usr/share/debootstrap/scripts/forky
  DEBOOTSTRAP_DIR=$here/.deb/usr/share/debootstrap "$here/.deb/usr/sbin/debootstrap" --variant=minbase --keyring="$keyring" \
    forky "$root/root" "$mirror"
  rm -rf .deb
  root=$here/root
  cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
  # No package may start a service. The mirror's Valid-Until is ignored, because the clock may be past it.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 755 "$root/usr/sbin/policy-rc.d"
  printf 'Acquire::Check-Valid-Until "false";\nAPT::Sandbox::User "root";\n' >"$root/etc/apt/apt.conf.d/90tests"
  # The mounts end with the namespace.
  unshare --mount --propagation private sh -ec '
    mount -t proc proc "$0/proc"; mount --rbind /sys "$0/sys"; mount --rbind /dev "$0/dev"; mount -t tmpfs tmpfs "$0/run"
    exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C sh -ec "
      apt-get update -q; apt-get install -y -q --no-install-recommends $1; apt-get clean"' "$root" "${packages[*]}"
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
}

[ "$(id -u)" = 0 ] || die "needs root"
echo "$(tree forky-1 forky)/root"
