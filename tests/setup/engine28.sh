#!/usr/bin/env bash
# engine28.sh start|stop|kill|reboot|remove|shell: runs Docker Engine 28.5 of forky.sh in its own network and mount namespaces, so that it can
# run in addition to another engine. `start` prints its socket. Needs root.
#
#   stop    ends dockerd with SIGTERM, as systemd does
#   kill    ends dockerd with SIGKILL; its containers keep running
#   reboot  kills dockerd and all containers, as a power failure does, and starts the engine again
#   remove  kills dockerd and all containers, and deletes the engine's data
#   shell   runs a command in the engine's namespaces
. "$(dirname "$0")/lib.sh"

state=${TEST_ENGINE28:-$cache/engine28}
network=${TEST_ENGINE28_NETWORK:-loopgate-engine28}
socket=$state/docker.sock
. "$(dirname "$0")/forky_namespace.sh"
answers() { curl -fsS -m 2 --unix-socket "$socket" http://docker/_ping >/dev/null 2>&1; }

start() {
  answers && { echo "$socket"; return; }
  hold 'mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"'
  rm -f "$state/pid"
  [ ! -s "$state/exec/containerd/containerd.pid" ] || kill -0 "$(cat "$state/exec/containerd/containerd.pid")" 2>/dev/null ||
    rm -f "$state/exec/containerd/containerd.pid"
  # shellcheck disable=SC2086
  enter setsid nohup dockerd --host "unix://$socket" --host unix:///var/run/docker.sock --data-root "$state/data" --exec-root "$state/exec" \
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

# stop SIGNAL: sends SIGNAL to dockerd, and waits until it has ended.
stop() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 0
  kill "-$1" "$pid" 2>/dev/null || return 0
  gone "$pid" 600 || die "dockerd $pid does not end"
}

# Kills every process of the engine and of its containers, and deletes the files that don't survive a power failure.
crash() {
  local pids=()
  mapfile -t pids < <(docker --host "unix://$socket" ps --quiet 2>/dev/null | xargs -r docker --host "unix://$socket" inspect --format '{{.State.Pid}}')
  stop KILL
  # This ends containerd and its shims too.
  release "${pids[@]}"
  rm -rf "$state/pid" "$state/exec" "$socket"
}

case ${1:-} in
  start) start ;;
  stop) stop TERM ;;
  kill) stop KILL ;;
  reboot) crash; start ;;
  remove) [ -z "$(holder)" ] || crash; ! mountpoint -q "$state/data" || umount "$state/data"; rm -rf "$state" ;;
  shell) shift; enter "DOCKER_HOST=unix://$socket" "$@" ;;
  *) die "usage: $(basename "$0") start|stop|kill|reboot|remove|shell COMMAND..." ;;
esac
