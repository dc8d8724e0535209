"""Where commands run: containers that act as machines, directories of this machine, and stand-ins for images."""

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
# The images as released, and those of the tests.
IMAGES = {"ghcr.io/loopgate/loopgate:0.1.0": "loopgate-test/loopgate", "ghcr.io/openclaw/openclaw:2026.9.6": "loopgate-test/openclaw"}
# How long a command or a condition may take, in seconds: a gateway is slow on a busy machine.
PATIENCE = 300
# For names that no two places have.
NUMBERS = itertools.count(1)
# What the names of this run's containers, networks and volumes begin with.
PREFIX = f"loopgate-docs-{os.getpid()}-"


def sh(*command: str, **more) -> str:
    """Runs a command that must succeed; returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **more)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def kill(process: subprocess.Popen) -> None:
    """Kills a command that still runs, with its children: after the run's end it must create nothing."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def eventually(what: str, happened) -> None:
    """Waits until `happened` is true."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.5)


def free_front() -> str:
    """The first three numbers of a network that overlaps none of the engine's: a run that was killed may have left some."""
    shown = sh("docker", "network", "inspect", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}", *sh("docker", "network", "ls", "--quiet").split())
    taken = [ipaddress.ip_network(subnet) for subnet in shown.split() if ":" not in subnet]
    for third in range(256):
        front = f"10.203.{(os.getpid() + third) % 256}"
        if not any(ipaddress.ip_network(f"{front}.0/29").overlaps(other) for other in taken):
            return front
    raise AssertionError("no subnet of 10.203.0.0/16 is free")


def remove_project(name: str) -> None:
    """Removes a project by its name alone, whichever of its files it was started with, and containers of `docker compose run` too."""
    # Not where a compose file is.
    sh("docker", "compose", "--project-name", name, "down", "--volumes", "--remove-orphans", "--timeout", "1", cwd="/")


def left_behind() -> list[str]:
    """What this run has created on the engine and not removed."""
    lists = {"container": ["ps", "--all", "--format", "{{.Names}}"], "network": ["network", "ls", "--format", "{{.Name}}"],
             "volume": ["volume", "ls", "--format", "{{.Name}}"]}
    return [f"{kind} {name}" for kind, command in lists.items() for name in sh("docker", *command).split() if name.startswith(PREFIX)]


class Place:
    """Something with a shell. It is created for its first command, and removed in the end."""

    def __init__(self):
        self.ready, self.profile, self.running = False, "", []

    def shell(self) -> list[str]:
        """The command that runs a script, which follows it."""
        raise NotImplementedError

    def make(self) -> None:
        """Creates it."""

    def remove(self) -> None:
        """Removes it."""

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
                status = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                status = "no end"
            finally:
                kill(process)
            output.seek(0)
            text = output.read()
        assert status == 0, f"exit status {status}:\n{text}"
        return text

    def stay(self, command: str, text: str, keep: bool) -> None:
        """Runs a command until it has printed `text`; with `keep` it stays running."""
        output = tempfile.NamedTemporaryFile("w+")
        process = self.start(command, output)
        self.running.append((process, output))
        said = lambda: Path(output.name).read_text()
        try:
            eventually(f"it says {text!r}", lambda: text in said() or process.poll() is not None)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{said()}") from None
        assert text in said(), f"it ended with {process.poll()}, and said:\n{said()}"
        if not keep:
            self.interrupt()

    def interrupt(self) -> None:
        """Stops the commands that still run."""
        for process, output in self.running:
            if process.poll() is None:
                # As a terminal does.
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
        """This place, and those that must exist as long as it does."""
        return [self]


class Here(Place):
    """A directory of this machine with the images of the tests: the repository, or a copy of the directory `copy` of it."""

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
    """The same for `docker run`: with a network and containers by the names that the command gives them."""

    def __init__(self, *names: str, network: str, **more):
        super().__init__(**more)
        self.names, self.network = names, network

    def make(self):
        super().make()
        # The reader's own state, which the gateway's user writes to.
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
    """A copy of docker/ with a project of its own, the images of the tests, and OpenClaw mounted into them."""

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
        self.wrap("compose.yaml")
        self.profile = (
            "in_gateway() { docker compose exec -T gateway sh -c "
            "'OPENCLAW_GATEWAY_TOKEN=$(cat /run/secrets/gateway_token) node /app/openclaw.mjs \"$@\"' sh \"$@\"; }\n"
        )

        if self.up:
            # As in docker/README.md.
            self.run("mkdir -m 700 secrets && openssl rand -hex 32 >secrets/gateway-token && docker compose up -d")
            self.wait()

    def wrap(self, file: str) -> None:
        """Merges tree.yaml into whichever files a command names, since those are what is tested; `file` where it names none."""
        wrapper = self.directory() / "bin/docker"
        wrapper.parent.mkdir()
        wrapper.write_text(
            f'#!/bin/bash\n[ "$1" = compose ] || exec {shutil.which("docker")} "$@"\nshift\nfiles=()\n'
            f'while [ "${{1:-}}" = -f ]; do files+=(-f "$2"); shift 2; done\n[ ${{#files[@]}} != 0 ] || files=(-f {file})\n'
            f'exec {shutil.which("docker")} compose "${{files[@]}}" -f tree.yaml "$@"\n'
        )
        wrapper.chmod(0o755)

    def wait(self) -> None:
        """Waits until the gateway accepts connections, as a reader would."""
        eventually("loopgate and its gateway are ready", lambda: self.succeeds("docker compose exec -T loopgate /loopgate healthcheck"))

    def succeeds(self, command: str) -> bool:
        """Whether a command succeeds now."""
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
    """A directory with OpenClaw's own compose file and the state that its set-up leaves, up and failing as it does."""

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
        self.wrap("docker-compose.yml")

    def wait(self) -> None:
        command = "docker compose -f docker-compose.yml -f compose.loopgate.yaml exec -T loopgate /loopgate healthcheck"
        eventually("loopgate and its gateway are ready", lambda: self.succeeds(command))


class Service(Place):
    """A container of a service of a project, labels included, with a shell in place of its command."""

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
    """A machine with a gateway on it, configured as given (JSON5), and `loopgate`, `openclaw` and `curl` in its PATH; `gateway` is its name.

    `beside` makes another one on the same network, which shares /root/shared with it and has no gateway.
    """

    def __init__(self, openclaw: str, configuration: str | None, setup=None, beside: "Machine | None" = None):
        super().__init__()
        self.openclaw, self.configuration, self.setup, self.beside = openclaw, configuration, setup, beside
        self.starts = 0
        self.name = f"{PREFIX}{next(NUMBERS)}"
        self.network = beside.network if beside else self.name
        self.shared = beside.shared if beside else f"{self.name}-shared"
        # Machines on its network, which is removed with it. Actions after commands may have created them again.
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
        # With restarts, as by a restart policy: on a busy machine the gateway may exceed its own deadlines.
        self.starts += 1
        run = f"touch /tmp/up-{self.starts}; while [ -e /tmp/up-{self.starts} ]; do openclaw gateway run >/tmp/gateway.log 2>&1; sleep 1; done"
        sh("docker", "exec", "--detach", self.name, "bash", "-c", run)
        # It listens long before it answers, and may speak TLS.
        ask = ["docker", "exec", self.name, "bash", "-c", "grep -q 'ready' /tmp/gateway.log && : </dev/tcp/127.0.0.1/18789"]
        answers = lambda: subprocess.run(ask, capture_output=True).returncode == 0
        try:
            eventually("the gateway says that it is ready", answers)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{sh('docker', 'exec', self.name, 'cat', '/tmp/gateway.log')}") from None

    def gateway_answers(self) -> None:
        """Waits until it accepts connections: a changed configuration may make it restart."""
        ask = ["docker", "exec", self.name, "bash", "-c", ": </dev/tcp/127.0.0.1/18789"]
        eventually("the gateway accepts connections", lambda: subprocess.run(ask, capture_output=True).returncode == 0)

    def restart_gateway(self) -> None:
        sh("docker", "exec", self.name, "rm", f"/tmp/up-{self.starts}")
        self.signal("TERM", "node|openclaw.*")
        self.start_gateway()

    def signal(self, name: str, processes: str) -> None:
        """Signals processes by name until there are none. The image has no ps."""
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
