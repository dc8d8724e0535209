"""The places where commands run: containers that act as machines, and directories of this machine."""

import functools
import ipaddress
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from commands import ROOT

TOKEN = "a-token-for-tests"
LOOPGATE = ROOT / "target/debug/loopgate"
# Released images, and the images of the tests that replace them.
IMAGES = {"ghcr.io/loopgate/loopgate:0.1.0": "loopgate-test/loopgate", "ghcr.io/openclaw/openclaw:2026.9.6": "loopgate-test/openclaw"}
# The seconds that a command or a condition may take. A gateway is slow on a busy machine.
TIMEOUT = 300
# Numbers for unique names of places.
NUMBERS = itertools.count(1)
# The prefix of the names of this run's containers, networks and volumes.
PREFIX = f"loopgate-docs-{os.getpid()}-"


def sh(*command: str, **more) -> str:
    """Runs a command that must succeed; returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, **more)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def kill(process: subprocess.Popen) -> None:
    """Kills a command that still runs, and its children, so that they create nothing after the end of the run."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def eventually(what: str, happened) -> None:
    """Waits until `happened` is true."""
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < deadline, f"not within {TIMEOUT} s: {what}"
        time.sleep(0.5)


def free_front() -> str:
    """The first three numbers of a /29 that overlaps no network of the engine. A run that was killed may have left networks."""
    shown = sh("docker", "network", "inspect", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}", *sh("docker", "network", "ls", "--quiet").split())
    taken = [ipaddress.ip_network(subnet) for subnet in shown.split() if ":" not in subnet]
    for third in range(256):
        front = f"10.203.{(os.getpid() + third) % 256}"
        if not any(ipaddress.ip_network(f"{front}.0/29").overlaps(other) for other in taken):
            return front
    raise AssertionError("no subnet of 10.203.0.0/16 is free")


def remove_project(name: str) -> None:
    """Removes a project by its name, whichever files it was started with, and containers of `docker compose run` too."""
    # In a directory without a compose file, compose goes by the name only.
    sh("docker", "compose", "--project-name", name, "down", "--volumes", "--remove-orphans", "--timeout", "1", cwd="/")


def left_behind() -> list[str]:
    """The containers, networks and volumes that this run has created and not removed."""
    lists = {"container": ["ps", "--all", "--format", "{{.Names}}"], "network": ["network", "ls", "--format", "{{.Name}}"],
             "volume": ["volume", "ls", "--format", "{{.Name}}"]}
    return [f"{kind} {name}" for kind, command in lists.items() for name in sh("docker", *command).split() if name.startswith(PREFIX)]


class Place:
    """A place with a shell. It is created for its first command, and removed by `end`."""

    def __init__(self):
        self.ready, self.profile, self.running = False, "", []

    def shell(self) -> list[str]:
        """The command that runs a script, which is its last argument."""
        raise NotImplementedError

    def make(self) -> None:
        """Creates the place."""

    def remove(self) -> None:
        """Removes the place."""

    def environment(self) -> dict[str, str]:
        return {}

    def start(self, command: str, output) -> subprocess.Popen:
        if not self.ready:
            self.ready = True
            self.make()
        script = f"set -euo pipefail\n{self.profile}\n{command}"
        environment = {**os.environ, **self.environment()}
        return subprocess.Popen(
            [*self.shell(), script], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=self.directory(),
            start_new_session=True,
        )

    def directory(self) -> Path | None:
        return None

    def run(self, command: str) -> str:
        """Runs a command that must succeed."""
        if command.startswith("export "):
            self.profile += f"{command}\n"
        with tempfile.TemporaryFile("w+") as output:
            process = self.start(command, output)
            try:
                status = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                status = "no end"
            finally:
                kill(process)
            output.seek(0)
            text = output.read()
        assert status == 0, f"exit status {status}:\n{text}"
        return text

    def stay(self, command: str, text: str, keep: bool) -> None:
        """Runs a command until it has printed `text`. With `keep` it goes on running."""
        output = tempfile.NamedTemporaryFile("w+")
        process = self.start(command, output)
        self.running.append((process, output))
        printed = lambda: Path(output.name).read_text()
        try:
            eventually(f"it prints {text!r}", lambda: text in printed() or process.poll() is not None)
        except AssertionError as error:
            raise AssertionError(f"{error}; it printed:\n{printed()}") from None
        assert text in printed(), f"it ended with {process.poll()}, and printed:\n{printed()}"
        if not keep:
            self.interrupt()

    def interrupt(self) -> None:
        """Stops the commands that still run."""
        for process, output in self.running:
            if process.poll() is None:
                # A terminal too sends SIGINT to the process group.
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                kill(process)
            output.close()
        self.running = []

    def end(self) -> None:
        try:
            self.interrupt()
        finally:
            if self.ready:
                self.ready = False
                self.remove()

    def needs(self) -> "list[Place]":
        """This place, and the places that must exist as long as it does."""
        return [self]


class Here(Place):
    """A directory of this machine: the repository, or a copy of its directory `copy`. `replace` changes texts in commands."""

    def __init__(self, copy: str | None = None, replace: dict[str, str] = {}):
        super().__init__()
        self.copy, self.replace = copy, replace

    def make(self):
        self.work = tempfile.mkdtemp(prefix="loopgate-docs-")
        if self.copy:
            shutil.copytree(ROOT / self.copy, self.work, dirs_exist_ok=True)

    def directory(self):
        return Path(self.work) if self.copy else ROOT

    def shell(self):
        return ["bash", "-c"]

    def environment(self):
        return {"PATH": f"{LOOPGATE.parent}:{os.environ['PATH']}"}

    def start(self, command, output):
        for ours, theirs in self.replace.items():
            command = command.replace(ours, theirs)
        return super().start(command, output)

    def remove(self):
        shutil.rmtree(self.work)


class Containers(Here):
    """A directory for commands of `docker run`. Removes the network and the containers that they create, by their names."""

    def __init__(self, *names: str, network: str, **more):
        super().__init__(**more)
        self.names, self.network = names, network

    def make(self):
        super().make()
        # The gateway's state directory, which must be writable for the gateway's user.
        state = self.directory() / "openclaw"
        state.mkdir()
        shutil.copy(ROOT / "docker/openclaw.json", state)
        for path in (state, state / "openclaw.json"):
            os.chown(path, 1000, 1000)

    def remove(self):
        subprocess.run(["docker", "rm", "--force", "--volumes", *self.names], capture_output=True)
        subprocess.run(["docker", "network", "rm", self.network], capture_output=True)
        subprocess.run(["docker", "volume", "rm", "loopgate-state"], capture_output=True)
        super().remove()


class Compose(Here):
    """A copy of docker/ with its own project name, the images of the tests, and OpenClaw mounted into the containers."""

    def __init__(self, openclaw: str, replace: dict[str, str] = {}, up: bool = False):
        super().__init__("docker", replace)
        self.openclaw, self.up = openclaw, up
        self.name = f"{PREFIX}{next(NUMBERS)}"

    @functools.cached_property
    def front(self) -> str:
        return free_front()

    def make(self):
        super().make()
        openclaw = '{volumes: ["${OPENCLAW_TREE}:/openclaw:ro"]}'
        (self.directory() / "tree.yaml").write_text(f"services: {{gateway: {openclaw}, agent: {openclaw}}}\n")
        self.add_docker_wrapper("compose.yaml")
        self.profile = (
            "in_gateway() { docker compose exec -T gateway sh -c "
            "'OPENCLAW_GATEWAY_TOKEN=$(cat /run/secrets/gateway_token) node /app/openclaw.mjs \"$@\"' sh \"$@\"; }\n"
        )

        if self.up:
            # The commands of docker/README.md.
            self.run("mkdir -m 700 secrets && openssl rand -hex 32 >secrets/gateway-token && docker compose up -d")
            self.wait()

    def add_docker_wrapper(self, file: str) -> None:
        """Puts a `docker` into the PATH that adds tree.yaml to the files that a command names, or to `file` if it names none."""
        wrapper = self.directory() / "bin/docker"
        wrapper.parent.mkdir()
        wrapper.write_text(
            f'#!/bin/bash\n[ "$1" = compose ] || exec {shutil.which("docker")} "$@"\nshift\nfiles=()\n'
            f'while [ "${{1:-}}" = -f ]; do files+=(-f "$2"); shift 2; done\n[ ${{#files[@]}} != 0 ] || files=(-f {file})\n'
            f'exec {shutil.which("docker")} compose "${{files[@]}}" -f tree.yaml "$@"\n'
        )
        wrapper.chmod(0o755)

    def wait(self) -> None:
        """Waits until loopgate and the gateway are ready."""
        eventually("loopgate and its gateway are ready", lambda: self.succeeds("docker compose exec -T loopgate /loopgate healthcheck"))

    def succeeds(self, command: str) -> bool:
        """Runs a command, and returns whether it succeeds."""
        return subprocess.run([*self.shell(), command], capture_output=True, cwd=self.work, env={**os.environ, **self.environment()}).returncode == 0

    def environment(self):
        return {
            **super().environment(),
            "PATH": f"{self.directory()}/bin:{os.environ['PATH']}",
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_PROFILES": "agent",
            "LOOPGATE_PUBLISH": "127.0.0.1:",
            "LOOPGATE_IMAGE": "loopgate-test/loopgate",
            "OPENCLAW_IMAGE": "loopgate-test/openclaw",
            "HAPROXY_IMAGE": "loopgate-test/debian",
            "CADDY_IMAGE": "loopgate-test/caddy",
            "AGENT_IMAGE": f"{self.name}-agent",
            "OPENCLAW_TREE": os.environ[self.openclaw],
            "HTTP_PUBLISH": "127.0.0.1:",
            "HTTPS_PUBLISH": "127.0.0.1:",
            "FRONT": self.front,
        }

    def remove(self):
        remove_project(self.name)
        subprocess.run(["docker", "image", "rm", f"{self.name}-agent"], capture_output=True)
        super().remove()


class Official(Compose):
    """A directory with OpenClaw's own compose file, and the state that OpenClaw's set-up writes."""

    def make(self):
        Here.make(self)
        directory = self.directory()
        for file in directory.iterdir():
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        shutil.copy(ROOT / "tests/docker/official.yaml", directory / "docker-compose.yml")
        (directory / "loopgate").symlink_to(ROOT)
        (directory / "config/workspace").mkdir(parents=True)
        (directory / "config/openclaw.json").write_text('{gateway: {mode: "local", bind: "lan", auth: {mode: "token", token: "%s"}}}' % TOKEN)
        for path in (directory, directory / "config", directory / "config/workspace", directory / "config/openclaw.json"):
            os.chown(path, 1000, 1000)
        tree = '{volumes: ["${OPENCLAW_TREE}:/openclaw:ro"], working_dir: /app}'
        (directory / "tree.yaml").write_text(f"services: {{openclaw-gateway: {tree}, openclaw-cli: {tree}}}\n")
        (directory / ".env").write_text(
            f"OPENCLAW_CONFIG_DIR={directory}/config\nOPENCLAW_WORKSPACE_DIR={directory}/config/workspace\nOPENCLAW_GATEWAY_TOKEN={TOKEN}\n"
            "OPENCLAW_GATEWAY_PORT=127.0.0.1:\nOPENCLAW_BRIDGE_PORT=127.0.0.1:\n"
        )
        self.add_docker_wrapper("docker-compose.yml")

    def wait(self) -> None:
        command = "docker compose -f docker-compose.yml -f compose.loopgate.yaml exec -T loopgate /loopgate healthcheck"
        eventually("loopgate and its gateway are ready", lambda: self.succeeds(command))


class Service(Place):
    """A container of a project's service, with its labels, that runs a shell instead of its command."""

    def __init__(self, compose: Compose, service: str):
        super().__init__()
        self.compose, self.service = compose, service

    def needs(self):
        return [self, self.compose]

    def make(self):
        self.compose.up = True
        self.compose.run(":")

    def directory(self):
        return self.compose.directory()

    def environment(self):
        return self.compose.environment()

    def shell(self):
        return ["docker", "compose", "run", "--rm", "--no-deps", "-T", "--env", "HOME=/tmp", "--name", f"{self.compose.name}-sh", "--entrypoint", "bash", self.service, "-c"]

    def interrupt(self):
        # A signal to the docker command does not reach the process in the container.
        if self.running:
            subprocess.run(["docker", "stop", "--time", "5", f"{self.compose.name}-sh"], capture_output=True)
        super().interrupt()

    def remove(self):
        subprocess.run(["docker", "rm", "--force", "--volumes", f"{self.compose.name}-sh"], capture_output=True)


class Machine(Place):
    """A container that acts as a machine with the host name `gateway`. It runs a gateway with `configuration` (JSON5).

    `loopgate`, `openclaw` and `curl` are in its PATH. With `beside`, the machine is on the same network as that one, shares
    /root/shared with it, and has no gateway.
    """

    def __init__(self, openclaw: str, configuration: str | None, setup=None, beside: "Machine | None" = None):
        super().__init__()
        self.openclaw, self.configuration, self.setup, self.beside = openclaw, configuration, setup, beside
        self.starts = 0
        self.name = f"{PREFIX}{next(NUMBERS)}"
        self.network = beside.network if beside else self.name
        self.shared = beside.shared if beside else f"{self.name}-shared"
        # Other machines on this machine's network. They must be removed first, also if they were created again after their end.
        self.neighbours = []
        if beside:
            beside.neighbours.append(self)

    def needs(self):
        return [self, self.beside] if self.beside else [self]

    def make(self):
        if not self.beside:
            sh("docker", "network", "create", self.network)
        alias = [] if self.beside else ["--network-alias", "gateway"]
        sh("docker", "run", "--detach", "--init", "--name", self.name, "--user", "0", "--network", self.network, *alias, "--workdir", "/root/shared",
           "--volume", f"{LOOPGATE}:/usr/local/bin/loopgate:ro", "--volume", f"{os.environ[self.openclaw]}:/openclaw:ro",
           "--volume", f"{ROOT}/tests/support/src/device_client.mjs:/client.mjs:ro", "--volume", f"{self.shared}:/root/shared", "--env", "HOME=/root", "--env", "OPENCLAW_NO_RESPAWN=1",
           "--env", "OPENCLAW_DISABLE_BONJOUR=1", "loopgate-test/openclaw", "sleep", "infinity")
        if self.configuration:
            self.write("/root/.openclaw/openclaw.json", self.configuration.replace('"..."', f'"{TOKEN}"'))
            self.write("/run/secrets/gateway_token", TOKEN)
            self.start_gateway()
        if self.setup:
            self.setup(self)

    def write(self, path: str, text: str) -> None:
        sh("docker", "exec", "--interactive", self.name, "bash", "-c", f"mkdir -p {Path(path).parent} && cat >{path}", input=text)

    def start_gateway(self) -> None:
        # Restarted like with a restart policy, because on a busy machine the gateway may exceed its own deadlines.
        self.starts += 1
        run = f"touch /tmp/up-{self.starts}; while [ -e /tmp/up-{self.starts} ]; do openclaw gateway run >/tmp/gateway.log 2>&1; sleep 1; done"
        sh("docker", "exec", "--detach", self.name, "bash", "-c", run)
        # The gateway listens long before it answers. It may speak TLS, so only its log and its port are tested.
        ask = ["docker", "exec", self.name, "bash", "-c", "grep -q 'ready' /tmp/gateway.log && : </dev/tcp/127.0.0.1/18789"]
        answers = lambda: subprocess.run(ask, capture_output=True).returncode == 0
        try:
            eventually("the gateway logs that it is ready", answers)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{sh('docker', 'exec', self.name, 'cat', '/tmp/gateway.log')}") from None

    def wait_for_gateway(self) -> None:
        """Waits until the gateway accepts connections. It may restart after a change of its configuration."""
        ask = ["docker", "exec", self.name, "bash", "-c", ": </dev/tcp/127.0.0.1/18789"]
        eventually("the gateway accepts connections", lambda: subprocess.run(ask, capture_output=True).returncode == 0)

    def restart_gateway(self) -> None:
        sh("docker", "exec", self.name, "rm", f"/tmp/up-{self.starts}")
        self.signal("TERM", "node|openclaw.*")
        self.start_gateway()

    def signal(self, name: str, processes: str) -> None:
        """Sends a signal to all processes with these names until none is left. The image has no pkill."""
        kill = f'left=0; for p in /proc/[0-9]*; do [[ "$(cat $p/comm 2>/dev/null)" =~ ^({processes})$ ]] && kill -{name} "${{p#/proc/}}" && left=1; done; exit $left'
        eventually(f"{processes} ends", lambda: not subprocess.run(["docker", "exec", self.name, "bash", "-c", kill]).returncode)

    def shell(self):
        return ["docker", "exec", self.name, "bash", "-c"]

    def interrupt(self):
        # A signal to the docker command does not reach the process in the container.
        if self.running:
            self.signal("INT", "loopgate")
        super().interrupt()

    def remove(self):
        for neighbour in self.neighbours:
            neighbour.end()
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], capture_output=True)
        if not self.beside:
            subprocess.run(["docker", "network", "rm", self.network], capture_output=True)
            subprocess.run(["docker", "volume", "rm", self.shared], capture_output=True)
