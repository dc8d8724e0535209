#!/usr/bin/env bash
# podman.sh rootful|rootless start|remove|shell: Podman 5.8 of forky.sh, in a network and a mount namespace of its own; `start` prints the socket of
# its API, which is compatible with Docker's. Needs root, also for the rootless one, which then runs as the user 10000.
#
#   remove  ends everything and takes its data away
#   shell   runs a command as Podman's user where Podman is
. "$(dirname "$0")/lib.sh"

kind=${1:-}
state=$cache/podman-$kind
network=loopgate-podman-$kind
socket=$state/docker.sock
# Of what is in /run, the network namespace of a rootless Podman has only its user's directory.
run=/run/user/10000
[ "$kind" = rootless ] || run=/run
. "$(dirname "$0")/forky_namespace.sh"
answers() { curl -fsS -m 2 --unix-socket "$socket" http://docker/_ping >/dev/null 2>&1; }

# A tree of cgroup v2 with nothing else in it, so that Podman may make its own groups there, whoever it runs as.
# A cgroup of its own, which is the root of the tree in a namespace: there Podman may make groups, whoever it runs as.
cgroup='
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mkdir -p "$root/sys/fs/cgroup/$network"
  echo $$ >"$root/sys/fs/cgroup/$network/cgroup.procs"
  umount "$root/sys/fs/cgroup"'
# in_cgroup COMMAND...: runs it in the namespaces and in that cgroup.
in_cgroup() { enter sh -ec 'echo $$ >/sys/fs/cgroup/service/cgroup.procs; exec "$@"' in_cgroup "$@"; }

# as_user COMMAND...: runs it as the user of this kind.
as_user() {
  local common=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "CONTAINERS_CONF=$state/containers.conf"
    "CONTAINERS_STORAGE_CONF=$state/storage.conf" PODMAN_IGNORE_CGROUPSV1_WARNING=1)
  if [ "$kind" = rootful ]; then in_cgroup "${common[@]}" HOME=/root "$@"; return; fi
  in_cgroup setpriv --reuid 10000 --regid 10000 --init-groups "${common[@]}" HOME=/home/tester USER=tester XDG_RUNTIME_DIR=/run/user/10000 "$@"
}

start() {
  answers && { echo "$socket"; return; }
  hold "$cgroup" unshare --cgroup
  mkdir -p "$state/data"
  # Limits can't be raised everywhere, and neither can the number of processes without a controller.
  cat >"$state/containers.conf" <<CONF
[containers]
default_ulimits = []
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
  cat >"$state/storage.conf" <<CONF
[storage]
driver = "overlay"
runroot = "$run/storage"
graphroot = "$state/data"
CONF
  enter sh -ec '
    state=$1 kind=$2
    # The cache may be below it. This is the /root of that tree, not of this machine.
    chmod 711 /root
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p /sys/fs/cgroup/service
    [ "$kind" = rootless ] || exit 0
    id tester >/dev/null 2>&1 || useradd --uid 10000 --create-home tester
    grep -q ^tester: /etc/subuid || { echo tester:100000:65536 >>/etc/subuid; echo tester:100000:65536 >>/etc/subgid; }
    mkdir -p /run/user/10000
    # pasta makes a device of its own.
    mount -t tmpfs tmpfs /dev/net
    mknod -m 666 /dev/net/tun c 10 200
    mount --make-rshared /
    chown -R tester: /run/user/10000 "$state"
    chown -R tester: /sys/fs/cgroup' \
    prepare "$state" "$kind"
  # In place of the timers of systemd, which run health checks elsewhere.
  as_user setsid nohup sh -c 'while sleep 2; do
    for state in starting unhealthy; do
      for container in $(podman ps --quiet --filter health=$state); do timeout 20 podman healthcheck run "$container"; done
    done
  done' >/dev/null 2>&1 </dev/null 8>&- 9>&- &
  as_user setsid nohup podman system service --time 0 "unix://$socket" >>"$state/log" 2>&1 </dev/null 8>&- 9>&- &
  local podman=$!
  for _ in $(seq 300); do
    answers && { say "podman $(as_user podman version --format '{{.Server.Version}}'), $kind, started"; echo "$socket"; return; }
    kill -0 "$podman" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$state/log" >&2
  die "podman did not start (its log: $state/log)"
}

case $kind:${2:-} in
  rootful:start | rootless:start) start ;;
  rootful:remove | rootless:remove) release; rm -rf "$state" ;;
  rootful:shell | rootless:shell) shift 2; as_user "$@" ;;
  *) die "usage: $(basename "$0") rootful|rootless start|remove|shell COMMAND..." ;;
esac
