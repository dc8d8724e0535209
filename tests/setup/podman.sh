#!/usr/bin/env bash
# podman.sh start|remove|shell: Podman 5.8 of forky.sh, in a network and a mount namespace of its own; `start` prints the socket of its API, which is
# compatible with Docker's. Needs root.
#
#   remove  stops Podman and its containers, and deletes their data
#   shell   runs a command in Podman's namespaces, as its user
#
# TEST_PODMAN selects one of three:
#
#   rootful             Podman as root (default)
#   rootless            Podman as the user loopgate-test (10000), with the subordinate ids from 100000 on and its own control group
#   rootless-no-cgroup  the same, but containers have no control groups, as where Podman may not create any. It can't list their processes.
. "$(dirname "$0")/lib.sh"

kind=${TEST_PODMAN:-rootful}
user=10000
state=$cache/podman-$kind
network=loopgate-podman-$kind
socket=$state/docker.sock
. "$(dirname "$0")/forky_namespace.sh"
answers() { curl -fsS -m 2 --unix-socket "$socket" http://docker/_ping >/dev/null 2>&1; }

# Podman gets its own cgroup, which is the root of the tree in a cgroup namespace, so it may create groups there.
cgroup='
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mkdir -p "$root/sys/fs/cgroup/$network"
  echo $$ >"$root/sys/fs/cgroup/$network/cgroup.procs"
  umount "$root/sys/fs/cgroup"'
# in_cgroup COMMAND...: runs a command in the namespaces and in that cgroup.
in_cgroup() { enter sh -ec 'echo $$ >/sys/fs/cgroup/service/cgroup.procs; exec "$@"' in_cgroup "$@"; }

# inside COMMAND...: runs a command in the namespaces and in that cgroup, with Podman's configuration, as Podman's user.
inside() {
  local as=()
  [ "$kind" = rootful ] || as=(setpriv "--reuid=$user" "--regid=$user" --clear-groups env "HOME=$state" "XDG_RUNTIME_DIR=/run/user/$user")
  in_cgroup "${as[@]}" env "CONTAINERS_CONF=$state/containers.conf" "CONTAINERS_STORAGE_CONF=$state/storage.conf" \
    PODMAN_IGNORE_CGROUPSV1_WARNING=1 "$@"
}

# Creates the user with its subordinate ids and directories, and the devices that it needs.
prepare_user() {
  enter sh -ec '
    user=$1 state=$2 kind=$3
    grep -q ^loopgate-test: /etc/passwd || useradd --uid "$user" --no-create-home loopgate-test
    for file in /etc/subuid /etc/subgid; do grep -q ^loopgate-test: "$file" || echo loopgate-test:100000:65536 >>"$file"; done
    # The path of the cache may lead through a home directory, which other users cannot enter. The one in this namespace is not that of this
    # machine.
    directory=$state
    while [ "$directory" != / ]; do
      directory=$(dirname "$directory")
      [ -n "$(find "$directory" -maxdepth 0 -perm -1)" ] || chmod a+x "$directory"
    done
    mkdir -p "/run/user/$user"
    chmod 700 "/run/user/$user"
    chown -R "$user:$user" "$state" "/run/user/$user"
    [ "$kind" != rootless ] || chown -R "$user:$user" /sys/fs/cgroup
    mountpoint -q /dev/net || { mount -t tmpfs -o mode=755 tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200; }
    mount --make-rshared /' prepare_user "$user" "$state" "$kind"
}

start() {
  answers && { echo "$socket"; return; }
  hold "$cgroup" unshare --cgroup
  mkdir -p "$state/data"
  # Raising limits is not permitted everywhere, and a limit of processes needs a controller.
  cat >"$state/containers.conf" <<CONF
[containers]
default_ulimits = []
pids_limit = 0
$([ "$kind" != rootless-no-cgroup ] || echo 'cgroups = "disabled"')
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
  cat >"$state/storage.conf" <<CONF
[storage]
driver = "overlay"
runroot = "$([ "$kind" = rootful ] && echo /run/storage || echo "/run/user/$user/storage")"
graphroot = "$state/data"
CONF
  enter sh -ec '
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p /sys/fs/cgroup/service'
  [ "$kind" = rootful ] || prepare_user
  # This loop runs the health checks. Elsewhere, timers of systemd do.
  inside setsid nohup sh -c 'while sleep 2; do
    for state in starting unhealthy; do
      for container in $(podman ps --quiet --filter health=$state); do timeout 20 podman healthcheck run "$container"; done
    done
  done' >/dev/null 2>&1 </dev/null 8>&- 9>&- &
  inside setsid nohup podman system service --time 0 "unix://$socket" >>"$state/log" 2>&1 </dev/null 8>&- 9>&- &
  local podman=$!
  for _ in $(seq 300); do
    answers && { say "podman $(inside podman version --format '{{.Server.Version}}') started, $kind"; echo "$socket"; return; }
    kill -0 "$podman" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$state/log" >&2
  die "podman did not start (its log: $state/log)"
}

case $kind in
  rootful | rootless | rootless-no-cgroup) ;;
  *) die "no podman \"$kind\"" ;;
esac
case ${1:-} in
  start) start ;;
  # Rootless Podman makes mount namespaces of its own, so its processes are found by their control groups.
  remove)
    # shellcheck disable=SC2016
    ! held || enter sh -c '
      for group in /sys/fs/cgroup/*/cgroup.kill; do echo 1 >"$group"; done
      # The groups are removed too: Linux 6.18 kills a process that is cloned into another group from a group that was killed once, so crun could
      # start nothing there.
      for try in $(seq 50); do
        find /sys/fs/cgroup -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null
        [ -n "$(find /sys/fs/cgroup -mindepth 1 -type d)" ] || break
        sleep 0.1
      done'
    release
    rm -rf "$state" ;;
  shell) shift; inside "$@" ;;
  *) die "usage: $(basename "$0") start|remove|shell COMMAND..." ;;
esac
