"""Runs every command of the documentation in an environment like the reader's.

Fails if a command fails, and if the table of commands below and the documentation differ.
"""

import json
import os
import signal
import sys
import time
import traceback

from commands import ROOT, block, commands
from places import IMAGES, TOKEN, Compose, Containers, Here, Machine, Official, Service, left_behind


class Stays:
    """A command that is interrupted once it has printed `text`, or, with `keep`, runs on for later commands."""

    def __init__(self, text: str, keep: bool = False):
        self.text, self.keep = text, keep


class Then:
    """A command that is followed by an action or a check."""

    def __init__(self, after):
        self.after = after


class When:
    """A command that waits for a condition first."""

    def __init__(self, happened):
        self.happened = happened


class Placeholder:
    """A command in which `word` is replaced by the result of `find`, such as a request's id; optionally followed by a check."""

    def __init__(self, word: str, find, after=lambda: None):
        self.word, self.find, self.after = word, find, after


class NotRun:
    """A command that can't be run by this test, with the reason."""

    def __init__(self, why: str):
        self.why = why


NEW, OLD = "OPENCLAW_NEW", "OPENCLAW_OLD"
CLUSTER = NotRun("needs a cluster")
SYSTEMD = NotRun("needs systemd")

here = Here()
# The README's configuration.
readme = Machine(NEW, block("README.md", "json5", "trustedProxies"))
# The configuration that fails in OpenClaw's issue 30740.
failing = Machine(NEW, '{gateway: {mode: "local", port: 18789, bind: "lan", tls: {enabled: true, autoGenerate: true}, auth: {mode: "token", token: "..."}}}')


def with_sidecar(machine: Machine) -> None:
    machine.stay("loopgate run --docker off --tls-name gateway", "loopgate is running", keep=True)
    machine.run("cp ~/.openclaw/openclaw.json .")


operated = Machine(NEW, block("docs/openclaw.md", "json5", "trustedProxies"), setup=with_sidecar)
old = Machine(OLD, block("docs/openclaw.md", "json5", "trustedProxies"))
robot = Machine(NEW, None, beside=operated)
shipped = Compose(NEW, replace={"localhost:18789": "localhost:$(docker compose port netns 18443 | cut -d: -f2)", "=127.0.0.1:18789": "=127.0.0.1:"})
official = Official(NEW, replace=IMAGES)
official_old = Official(OLD, replace=IMAGES)
plain = Containers("netns", "gateway", "loopgate", network="claw", copy="docker", replace={
    **IMAGES, "ghcr.io/openclaw/openclaw:2026.9.6": "-v $OPENCLAW_NEW:/openclaw:ro loopgate-test/openclaw", "-p 18789:": "-p 127.0.0.1::",
})
# In docker/README.md `openclaw` means the command in the gateway's running container.
shipped_old = Compose(OLD, replace={"openclaw devices": "in_gateway devices", **IMAGES}, up=True)


def pending_request(place):
    """The id of the only pairing request that waits for an approval."""
    return place.run("openclaw devices list --json | grep -o '\"requestId\": *\"[^\"]*' | cut -d'\"' -f4 | head -n 1").strip()


def request_of_external_client() -> str:
    """Makes an external client on another machine request pairing; returns the id of its request."""
    operated.run("loopgate cert export >ca.pem")
    assert "pairing required" in external_clients_output()
    return pending_request(operated)


def external_clients_output() -> str:
    """Connects an external client on another machine, with its own device and the right token; returns its output."""
    options = {"ws": "/openclaw/node_modules", "url": "wss://gateway:18443", "token": TOKEN, "ca": "ca.pem", "identity": "outsider.json"}
    return robot.run(f"node /client.mjs '{json.dumps(options)}'")


def serial_of_an_issued_certificate() -> str:
    operated.run("loopgate cert issue --name lost --out lost")
    return operated.run("openssl x509 -in lost/agent.pem -noout -serial | cut -d= -f2").strip()


def assert_revoked() -> None:
    assert "was revoked before" in operated.run("loopgate cert revoke --cert lost/agent.pem")


def assert_external_client_accepted() -> None:
    output = external_clients_output()
    assert '"end":"hello"' in output, output


def assert_setup_code_has_loopgates_url() -> None:
    output = operated.run("openclaw qr --json --no-ascii")
    assert "wss://gateway.example.com:18789" in output, output


charts = Here(replace={"helm upgrade --install": f"{os.environ['HELM']} template", "helm install claw oci://ghcr.io/loopgate/charts/loopgate": f"{os.environ['HELM']} template claw charts/loopgate"})
# The debug binary exists already; a release build would take minutes.
built = Here(replace={"cargo run --release": "cargo run"})

# The commands of each document in its order: the command's first words, the place where it runs, and how, unless it runs to its end.
TABLE = {
    "README.md": [
        ("cargo run --release -- demo", built, Stays("With curl, as the agent")),
        ("tests/run", NotRun("runs this test itself")),
        ("cp loopgate/docker/compose.loopgate.yaml .", official_old),
        ("docker compose stop --timeout 60 && docker compose run", official_old),
        ("docker compose -f docker-compose.yml -f compose.loopgate.yaml up -d", official_old, Then(lambda: official_old.wait())),
        ("loopgate run --docker off", readme, Stays("loopgate is running", keep=True)),
        ("loopgate cert export", readme),
        ("curl --cacert ca.pem https://gateway:18443", readme),
    ],
    "docker/README.md": [
        ("mkdir -m 700 secrets", shipped),
        ("docker compose up -d", shipped, Then(lambda: shipped.wait())),
        ("docker compose exec -T loopgate /loopgate cert", shipped),
        ("curl --cacert ca.pem", shipped),
        ("export SITE=", shipped),
        ("docker compose -f compose.yaml -f compose.caddy.yaml", shipped),
        ("docker compose exec gateway node", shipped),
        ("docker compose restart netns gateway", shipped),
        ("openclaw devices list", shipped_old),
        ("docker run --rm --user", shipped_old),
    ],
    "charts/loopgate/README.md": [
        ("helm install", charts),
        ("helm test", CLUSTER),
        ("kubectl exec", CLUSTER),
        ("kubectl create configmap", CLUSTER),
    ],
    "docs/kubernetes.md": [
        ("helm upgrade --install claw charts/loopgate", charts),
        ("kubectl exec", CLUSTER),
        ("kubectl create configmap", CLUSTER),
    ],
    "docs/openclaw.md": [
        ("docker compose config --format json", official),
        ("docker compose stop", official),
        ("docker compose run --rm --no-deps openclaw-gateway sh -ec", official),
        ("docker compose -f docker-compose.yml -f compose.loopgate.yaml up -d", official, Then(lambda: official.wait())),
        ("docker compose -f docker-compose.yml -f compose.loopgate.yaml exec loopgate /loopgate check", official),
        ("docker compose -f docker-compose.yml -f compose.loopgate.yaml exec -T loopgate /loopgate cert", official),
        ("openclaw config set gateway.bind", failing),
        ("openclaw config set gateway.tls", failing),
        ("openclaw config set gateway.trustedProxies", failing, Then(lambda: failing.restart_gateway())),
        ("docker network create claw", plain),
        ("docker run -d --name netns", plain),
        ("docker run -d --name gateway", plain),
        ("docker run -d --name loopgate", plain),
        ("loopgate run --docker off", failing, Stays("loopgate is running", keep=True)),
        ("loopgate check --docker off", failing, When(lambda: failing.wait_for_gateway())),
        ("sudo systemctl enable", SYSTEMD),
        ("sudo loopgate cert export", SYSTEMD),
        ("sudo systemd-run", SYSTEMD),
        ("kubectl exec", CLUSTER),
        ("loopgate exec -- node", Service(shipped, "agent"), Stays("node capability surface is awaiting operator approval")),
        ("loopgate cert issue", operated),
        ("loopgate agent --cert", robot, Stays("loopgate")),
        ("openclaw devices list", old),
        ("loopgate pair", old),
        ("openclaw devices list", operated),
        ("openclaw devices approve", operated, Placeholder("REQUEST", request_of_external_client, assert_external_client_accepted)),
        ("openclaw config set plugins.entries.device-pair.config.publicUrl", operated, Then(assert_setup_code_has_loopgates_url)),
    ],
    # tests/real tests the configurations of this document.
    "docs/sign-in.md": [("loopgate cert issue --user", operated)],
    "docs/operations.md": [
        ("loopgate status ", operated),
        ("loopgate status --watch", operated, Stays("external")),
        ("loopgate check ", operated),
        ("loopgate cert show", operated),
        ("loopgate config show", operated),
        ("loopgate cert rotate ", operated),
        ("loopgate cert rotate --new-key", operated),
        ("loopgate cert revoke", operated, Placeholder("HEX", serial_of_an_issued_certificate, assert_revoked)),
        ("docker compose exec loopgate /loopgate reload", shipped, When(lambda: shipped.wait())),
        ("loopgate check --json", operated),
    ],
    "docs/security.md": [
        ("loopgate check --openclaw-config", operated),
        ("loopgate demo --once", operated),
    ],
    "docs/architecture.md": [],
    "docs/benchmark.md": [],
    "docs/comparison.md": [],
    "docs/reference.md": [],
    "docs/threat-model.md": [],
}


def check(document: str) -> list[str]:
    """The differences between a document and the table."""
    found, listed = commands(document), [row[0] for row in TABLE[document]]
    wrong = [f"not in the table of tests/docs: {command}" for command, row in zip(found, listed + [""] * len(found)) if not row or not command.startswith(row)]
    return wrong + [f"in the table of tests/docs, but not there: {row}" for row in listed[len(found):]]


def run(command: str, place, how) -> None:
    if isinstance(how, Stays):
        return place.stay(command, how.text, how.keep)
    if isinstance(how, Placeholder):
        command = command.replace(how.word, how.find())
    if isinstance(how, When):
        how.happened()
    place.run(command)
    if isinstance(how, (Then, Placeholder)):
        how.after()


def main() -> int:
    wanted = [document for document in TABLE if not sys.argv[1:] or any(name in document for name in sys.argv[1:])]
    unlisted = {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")} - set(TABLE)
    for document in unlisted:
        print(f"FAILED {document}: not in the table of tests/docs")
    failed, count = len(unlisted), 0
    # Gateways need much memory, so a place exists only from its first command to its last.
    last = {}
    for row in (row for document in wanted for row in TABLE[document] if not isinstance(row[1], NotRun)):
        last.update({place: row for place in row[1].needs()})
    try:
        for document in wanted:
            wrong = check(document)
            for complaint in wrong:
                print(f"FAILED {document}: {complaint}", flush=True)
            failed += len(wrong)
            for command, row in zip(commands(document), TABLE[document] if not wrong else []):
                _, place, *how = row
                if isinstance(place, NotRun):
                    print(f"NOT RUN {document}: {command}: {place.why}", flush=True)
                    continue
                start = time.monotonic()
                try:
                    run(command, place, how[0] if how else None)
                    count += 1
                    print(f"ok {document}: {command} ({time.monotonic() - start:.1f} s)", flush=True)
                except Exception as error:
                    failed += 1
                    print(f"FAILED {document}: {command}\n{error if isinstance(error, AssertionError) else traceback.format_exc()}", flush=True)
                for place in [place for place, row_ in last.items() if row_ is row]:
                    place.end()
    finally:
        for place in reversed(last):
            try:
                place.end()
            except Exception as error:
                failed += 1
                print(f"FAILED to end {type(place).__name__}: {error}", flush=True)
    for name in left_behind():
        failed += 1
        print(f"FAILED to remove {name}", flush=True)
    print(f"{count} commands run, {failed} failed")
    return 1 if failed or not count else 0


def exit_at_signals() -> None:
    """Cleans up at SIGTERM and SIGINT too, and ignores further signals meanwhile."""
    signals = (signal.SIGTERM, signal.SIGINT)

    def clean_exit(*_):
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(1)

    for number in signals:
        signal.signal(number, clean_exit)


if __name__ == "__main__":
    exit_at_signals()
    sys.exit(main())
