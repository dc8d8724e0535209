#!/usr/bin/env bash
# engine28.sh start|stop|kill|reboot|remove|shell: Docker Engine 28.5 of forky.sh beside any other engine, in a network and a mount
# namespace of its own; `start` prints its socket. Needs root.
#
#   stop    ends dockerd as systemd would       kill    ends it by SIGKILL, with the containers alive
#   reboot  ends everything at once, as a machine does that loses power, and starts the engine again
#   remove  ends everything and takes its data away
#   shell   runs a command where the engine is
. "$(dirname "$0")/lib.sh"

state=${TEST_ENGINE28:-$cache/engine28}
socket=$state/docker.sock
network=loopgate-engine28
repository=$(cd "$(dirname "$0")/../.." && pwd)
answers() { curl -fsS -m 2 --unix-socket "$socket" http://docker/_ping >/dev/null 2>&1; }
holder() { cat "$state/holder" 2>/dev/null; }
inside() { nsenter --target "$(holder)" --mount --net env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "DOCKER_HOST=unix://$socket" "$@"; }
gone() { for _ in $(seq "$2"); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done; return 1; }

# A process that keeps the namespaces, since they have to outlive the engine. The root is pivoted into: runc can't from a mere chroot. What
# compose files mount is on this machine, at the same paths: the repository, the cache and /tmp.
hold() {
  [ -n "$(holder)" ] && kill -0 "$(holder)" 2>/dev/null && return
  local root
  root=$("$(dirname "$0")/forky.sh")
  # Without a default route the engine's own checks complain; nothing is reached by this one.
  [ -e "/run/netns/$network" ] || {
    ip netns add "$network"
    ip -n "$network" link set lo up
    ip -n "$network" link add out0 type veth peer name out1
    ip -n "$network" addr add 198.51.100.1/24 dev out0
    ip -n "$network" link set out0 up
    ip -n "$network" link set out1 up
    ip -n "$network" route add default via 198.51.100.9
  }
  mkdir -p "$state"
  setsid nohup nsenter --net="/run/netns/$network" unshare --mount bash -euc '
    root=$1; shift
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    for shared; do mkdir -p "$root$shared"; mount --bind "$shared" "$root$shared"; done
    cd "$root"; pivot_root . .; umount -l .; cd /
    exec sleep infinity' hold "$root" /tmp "$cache" "$repository" >/dev/null 2>&1 </dev/null 8>&- 9>&- &
  echo $! >"$state/holder"
  for _ in $(seq 100); do [ "$(ps -o comm= -p "$(holder)")" = sleep ] && return; sleep 0.05; done
  die "the namespaces of the engine can't be made"
}

start() {
  answers && { echo "$socket"; return; }
  hold
  rm -f "$state/pid"
  [ ! -s "$state/exec/containerd/containerd.pid" ] || kill -0 "$(cat "$state/exec/containerd/containerd.pid")" 2>/dev/null ||
    rm -f "$state/exec/containerd/containerd.pid"
  # shellcheck disable=SC2086
  setsid nohup nsenter --target "$(holder)" --mount --net env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    dockerd --host "unix://$socket" --host unix:///var/run/docker.sock --data-root "$state/data" --exec-root "$state/exec" \
    --pidfile "$state/pid" ${TEST_ENGINE28_ARGS:-} >>"$state/log" 2>&1 </dev/null 8>&- 9>&- &
  local dockerd=$!
  for _ in $(seq 600); do
    answers && { say "dockerd $(cat "$state/pid") of $(docker --host "unix://$socket" version --format '{{.Server.Version}}') started"; echo "$socket"; return; }
    kill -0 "$dockerd" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$state/log" >&2
  die "dockerd did not start (its log: $state/log)"
}

# stop SIGNAL: ends dockerd.
stop() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 0
  kill "-$1" "$pid" 2>/dev/null || return 0
  gone "$pid" 600 || die "dockerd $pid does not end"
}

# Ends every process of the engine and of its containers, and takes away what a machine loses with its power.
crash() {
  local pids=()
  mapfile -t pids < <(docker --host "unix://$socket" ps --quiet 2>/dev/null | xargs -r docker --host "unix://$socket" inspect --format '{{.State.Pid}}')
  stop KILL
  # containerd, its shims, and all else in the mount namespace but who keeps it.
  local namespace process
  namespace=$(readlink "/proc/$(holder)/ns/mnt")
  for process in /proc/[0-9]*; do
    [ "$(readlink "$process/ns/mnt" 2>/dev/null)" = "$namespace" ] && [ "${process#/proc/}" != "$(holder)" ] && pids+=("${process#/proc/}")
  done
  [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
  local pid
  for pid in "${pids[@]}"; do gone "$pid" 100 || true; done
  kill -KILL "$(holder)"
  gone "$(holder)" 100 || true
  rm -rf "$state/holder" "$state/pid" "$state/exec" "$socket"
  ip netns del "$network"
}

case ${1:-} in
  start) start ;;
  stop) stop TERM ;;
  kill) stop KILL ;;
  reboot) crash; start ;;
  remove) [ -z "$(holder)" ] || crash; ! mountpoint -q "$state/data" || umount "$state/data"; rm -rf "$state" ;;
  shell) shift; inside "$@" ;;
  *) die "usage: $(basename "$0") start|stop|kill|reboot|remove|shell COMMAND..." ;;
esac
