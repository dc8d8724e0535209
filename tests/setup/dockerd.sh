#!/usr/bin/env bash
# dockerd.sh start|stop|status: starts a Docker Engine without systemd if none runs.
#
# `start` uses an engine that answers on the default socket, or else installs Debian's and starts it; prints the socket. It removes
# containers, networks and volumes that a killed run of the tests has left in an engine that it starts. `stop` stops only an engine that
# `start` started, and keeps its images in the cache.
. "$(dirname "$0")/lib.sh"

socket=${TEST_DOCKER_SOCKET:-/var/run/docker.sock}
engine=$cache/engine
answers() { curl -fsS -m 2 --unix-socket "$socket" http://docker/_ping >/dev/null 2>&1; }
# runs NAME FILE: succeeds if the pid in FILE is of a running process NAME, and not a reused number or a zombie.
runs() { [ -s "$2" ] && [ "$(ps -o comm= -p "$(cat "$2")" 2>/dev/null)" = "$1" ] && ! ps -o stat= -p "$(cat "$2")" | grep -q '^Z'; }
alive() { runs dockerd "$engine/pid"; }

# Some containers would restart with the engine, and networks would overlap with new ones.
remove_leftovers() {
  export DOCKER_HOST=unix://$socket
  docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes
  docker network prune --force
  docker volume ls --quiet | xargs --no-run-if-empty docker volume rm --force
}

start() {
  answers && { echo "$socket"; return; }
  [ "$(id -u)" = 0 ] || die "nothing answers on $socket, and starting an engine needs root"
  command -v dockerd >/dev/null || apt_install docker.io iptables procps
  mkdir -p "$engine" "$(dirname "$socket")"
  # Stale pid files of a killed daemon and its containerd prevent the next start.
  alive || rm -f "$engine/pid"
  runs containerd "$engine/exec/containerd/containerd.pid" || rm -f "$engine/exec/containerd/containerd.pid"
  setsid nohup dockerd --host "unix://$socket" --data-root "$engine/data" --exec-root "$engine/exec" --pidfile "$engine/pid" \
    >"$engine/log" 2>&1 </dev/null &
  local dockerd=$!
  for _ in $(seq 300); do
    if answers; then
      say "dockerd $(cat "$engine/pid") started"
      remove_leftovers >&2 || say "some leftovers of an earlier run could not be removed"
      echo "$socket"
      return
    fi
    kill -0 "$dockerd" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$engine/log" >&2
  die "dockerd did not start (its log: $engine/log)"
}

stop() {
  alive || { say "no engine of ours is running"; return; }
  local pid
  pid=$(cat "$engine/pid")
  kill -TERM "$pid"
  for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -0 "$pid" 2>/dev/null && kill -KILL "$pid"
  # dockerd bind-mounts its data root on itself, and leaves that behind when it is killed.
  ! mountpoint -q "$engine/data" || umount "$engine/data"
  say "dockerd $pid stopped"
}

status() { answers || { echo "down"; exit 1; }; curl -fsS -m 5 --unix-socket "$socket" http://docker/version; }

case ${1:-} in
  start)
    # Two runs at the same time must not start two engines.
    exec 8>"$cache/engine.lock"
    flock 8
    start 8>&- ;;
  stop) stop ;;
  status) status ;;
  *) die "usage: $(basename "$0") start|stop|status" ;;
esac
