"""loopgate itself accepts the chart's sidecar: its variables, arguments, configuration file and probes.

TEST_BINARY is the path of the program, by default of the debug build.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import tomllib
import unittest
from pathlib import Path

from chart import HERE, VALUES, container, render
from test_connection import GREETING, outcome, server

BINARY = Path(os.environ.get("TEST_BINARY", HERE.parent.parent / "target" / "debug" / "loopgate"))
CONFIG = "/run/loopgate/config/loopgate.toml"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are unused at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for each in sockets:
        each.close()
    return ports


def reaches_status(expected: int, command: list[str]) -> bool:
    """Runs a probe until it exits with this status; returns False if it doesn't within 30 s."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if subprocess.run([BINARY, *command[1:]], env={}, capture_output=True, timeout=30).returncode == expected:
            return True
        time.sleep(0.05)
    return False


def configuration(objects: list[dict], by_exec: bool = False) -> dict:
    """The configuration of the sidecar, or that of a command which `kubectl exec` runs in its container."""
    sidecar = container(objects, "loopgate")
    command, *arguments = sidecar["args"]
    assert command == "run"
    environment = {v["name"]: v["value"] for v in sidecar["env"]}
    with tempfile.TemporaryDirectory() as directory:
        if environment.get("LOOPGATE_CONFIG") == CONFIG:
            file = Path(directory) / "loopgate.toml"
            file.write_text(next(o["data"]["loopgate.toml"] for o in objects if "loopgate.toml" in o.get("data", {})))
            environment["LOOPGATE_CONFIG"] = str(file)
        done = subprocess.run([BINARY, "config", "show", *([] if by_exec else arguments)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


@unittest.skipUnless(BINARY.exists(), f"no loopgate at {BINARY}: build it, or set TEST_BINARY")
class Binary(unittest.TestCase):
    def test_loopgate_accepts_the_sidecar_of_every_values_file(self):
        for values in VALUES:
            objects = render(values)
            if any(o["kind"] == "StatefulSet" for o in objects):
                with self.subTest(values.name):
                    configuration(objects)

    def test_commands_in_the_container_have_the_sidecars_configuration(self):
        for values in VALUES:
            objects = render(values, extra=("--set-json", "sidecar.extraArgs=[]"))
            if any(o["kind"] == "StatefulSet" for o in objects):
                with self.subTest(values.name):
                    self.assertEqual(configuration(objects, by_exec=True), configuration(objects))

    def test_values_become_loopgates_configuration(self):
        shown = configuration(
            render(
                {
                    "gateway": {"port": 3000},
                    "sidecar": {"listen": ["eth0", "[::]"], "port": 8443, "plainPort": 8080, "drainTimeoutSeconds": 25, "config": {"limits": {"head_bytes": 131072}}},
                    "agents": {"cidrs": ["10.0.0.5/32"], "scopes": ["operator.read", "operator.write"], "inheritToken": True},
                    "external": {"trustedProxies": ["10.1.0.0/24"], "proxyProtocol": True},
                }
            )
        )
        self.assertEqual(shown["gateway"]["address"], "127.0.0.1:3000")
        self.assertEqual(shown["listen"]["on"], ["eth0:8443", "[::]:8443"])
        self.assertEqual(shown["listen"]["plain"], ["eth0:8080", "[::]:8080"])
        self.assertEqual(shown["listen"]["own_addresses"], "external")
        self.assertIs(shown["listen"]["proxy_protocol"], True)
        self.assertEqual(shown["limits"]["head_bytes"], 131072)
        self.assertEqual(shown["limits"]["drain_timeout"], "25s")
        self.assertEqual(shown["agents"]["cidrs"], ["10.0.0.5/32"])
        self.assertEqual(shown["agents"]["scopes"], ["operator.read", "operator.write"])
        self.assertIs(shown["agents"]["inherit_token"], True)
        self.assertEqual(shown["external"]["trusted_proxies"], ["10.1.0.0/24"])
        self.assertEqual(shown["docker"]["engine"], "off")

    def test_forwards_are_ports_of_the_gateway(self):
        shown = configuration(render({"sidecar": {"forward": [18793, 3334]}}))
        self.assertEqual(shown["listen"]["forward"], ["18793", "3334"])

    def test_discovery_uses_the_mounted_credentials(self):
        objects = render({"agents": {"discovery": "kubernetes", "attested": True}})
        shown = configuration(objects)
        self.assertEqual(shown["discovery"], "kubernetes")
        self.assertEqual(shown["kubernetes"]["audience"], "loopgate")
        other = configuration(render({"agents": {"discovery": "kubernetes", "attested": True, "audience": "https://claw.example:"}}))
        self.assertEqual(other["kubernetes"]["audience"], "https://claw.example:")
        mounts = [m["mountPath"] for m in container(objects, "loopgate")["volumeMounts"]]
        self.assertIn(shown["kubernetes"]["credentials"], mounts)

    @unittest.skipUnless(shutil.which("node"), "needs node")
    def test_the_rendered_sidecar_runs_and_its_probes_report_its_state(self):
        gateway, port, admin = free_ports(3)
        sidecar = container(
            render({"gateway": {"port": gateway}, "sidecar": {"listen": ["127.0.0.1"], "port": port}, "metrics": {"port": admin}}), "loopgate"
        )
        live, ready = (sidecar[probe]["exec"]["command"] for probe in ("livenessProbe", "readinessProbe"))
        with tempfile.TemporaryDirectory() as state, tempfile.TemporaryFile() as log:
            environment = {v["name"]: v["value"] for v in sidecar["env"]} | {"LOOPGATE_STATE_DIR": state}
            running = subprocess.Popen([BINARY, *sidecar["args"]], env=environment, stdout=log, stderr=log)
            try:
                # Kubernetes starts the gateway only after a native sidecar, which must be live without it.
                self.assertTrue(reaches_status(0, live))
                self.assertTrue(reaches_status(1, ready))
                with server(GREETING, None, gateway):
                    self.assertTrue(reaches_status(0, ready))
                    self.assertEqual(outcome(port)[0], 0, outcome(port)[1])
                running.terminate()
                self.assertEqual(running.wait(timeout=30), 0)
            except BaseException:
                log.seek(0)
                print(log.read().decode())
                raise
            finally:
                running.kill()
                running.wait()
