# Functions to run programs with the directory of forky.sh as root, in separate network and mount namespaces. Sourced after lib.sh by scripts
# that set $state (a directory) and $network (the name of the network namespace).
#
# The holder is a process that keeps the namespaces.
repository=$(cd "$(dirname "$0")/../.." && pwd)
holder() { cat "$state/holder" 2>/dev/null; }
held() { [ -n "$(holder)" ] && kill -0 "$(holder)" 2>/dev/null; }
gone() { for _ in $(seq "$2"); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done; return 1; }
# enter COMMAND...: runs a command in the namespaces with a clean environment.
enter() {
  nsenter --target "$(holder)" --mount --net --cgroup env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}

# hold PREPARE [COMMAND...]: starts the holder, because the namespaces must outlive the engine. COMMAND starts it if it needs more namespaces.
# PREPARE is shell code that runs in the new mount namespace before the root is changed to $root, with pivot_root, because runc does not work
# in a chroot. The repository, the cache and /tmp are mounted at the same paths as on this machine, for the mounts in compose files.
hold() {
  ! held || return 0
  local root prepare=$1
  shift
  root=$("$(dirname "$0")/forky.sh")
  # The engine needs a default route. This one leads to no other machine.
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
    root=$1 prepare=$2 network=$3 shared=$4; shift 4
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    eval "$prepare"
    for shared in $shared; do mkdir -p "$root$shared"; mount --bind "$shared" "$root$shared"; done
    cd "$root"; pivot_root . .; umount -l .; cd /
    exec "$@" sleep infinity' hold "$root" "$prepare" "$network" "/tmp $cache $repository" "$@" >"$state/hold.log" 2>&1 </dev/null 8>&- 9>&- &
  echo $! >"$state/holder"
  for _ in $(seq 100); do [ "$(ps -o comm= -p "$(holder)")" = sleep ] && return; sleep 0.05; done
  cat "$state/hold.log" >&2
  die "the namespaces of the engine can't be made"
}

# release PID...: kills these processes, all others in the mount namespace, and finally the holder.
release() {
  local namespace process pid pids=("$@")
  held || { ip netns del "$network" 2>/dev/null || true; return 0; }
  namespace=$(readlink "/proc/$(holder)/ns/mnt")
  for process in /proc/[0-9]*; do
    [ "$(readlink "$process/ns/mnt" 2>/dev/null)" = "$namespace" ] && [ "${process#/proc/}" != "$(holder)" ] && pids+=("${process#/proc/}")
  done
  [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
  for pid in "${pids[@]}"; do gone "$pid" 100 || true; done
  kill -KILL "$(holder)"
  gone "$(holder)" 100 || true
  rm -f "$state/holder"
  ip netns del "$network"
}
