"""Whether loopgate itself takes what the chart gives it: `loopgate config show` with the sidecar's arguments, variables and file.

LOOPGATE_BINARY names the program; by default it is the debug build, if there is one.
"""

import os
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path

from chart import HERE, VALUES, container, render

BINARY = Path(os.environ.get("LOOPGATE_BINARY", HERE.parent.parent / "target" / "debug" / "loopgate"))
CONFIG = "/run/loopgate/config/loopgate.toml"


def configuration(objects: list[dict]) -> dict:
    """What loopgate makes of the sidecar's container."""
    sidecar = container(objects, "loopgate")
    command, *arguments = sidecar["args"]
    assert command == "run"
    environment = {v["name"]: v["value"] for v in sidecar["env"]}
    with tempfile.TemporaryDirectory() as directory:
        if environment.get("LOOPGATE_CONFIG") == CONFIG:
            file = Path(directory) / "loopgate.toml"
            file.write_text(next(o["data"]["loopgate.toml"] for o in objects if "loopgate.toml" in o.get("data", {})))
            environment["LOOPGATE_CONFIG"] = str(file)
        done = subprocess.run([BINARY, "config", "show", *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


@unittest.skipUnless(BINARY.exists(), f"no loopgate at {BINARY}: build it, or set LOOPGATE_BINARY")
class Binary(unittest.TestCase):
    def test_it_accepts_the_sidecar_of_every_values_file(self):
        usage = subprocess.run([BINARY, "run", "--help"], env={}, capture_output=True, text=True, timeout=60).stdout
        # A build without Kubernetes discovery does not know the flag.
        extra = () if "--discovery" in usage else ("--set", "agents.discovery=false,agents.attested=false")
        for values in VALUES:
            objects = render(values, extra=extra)
            if any(o["kind"] == "StatefulSet" for o in objects):
                with self.subTest(values.name):
                    configuration(objects)

    def test_what_the_values_say_is_what_it_does(self):
        shown = configuration(
            render(
                {
                    "gateway": {"port": 3000},
                    "sidecar": {"listen": ["eth0", "[::]"], "port": 8443, "drainTimeoutSeconds": 25, "config": {"limits": {"head_bytes": 131072}}},
                    "agents": {"cidrs": ["10.0.0.5/32"], "scopes": ["operator.read", "operator.write"], "inheritToken": True},
                    "external": {"trustedProxies": ["10.1.0.0/24"], "proxyProtocol": True},
                }
            )
        )
        self.assertEqual(shown["gateway"]["address"], "127.0.0.1:3000")
        self.assertEqual(shown["listen"]["on"], ["eth0:8443", "[::]:8443"])
        self.assertEqual(shown["listen"]["own_addresses"], "agent")
        self.assertIs(shown["listen"]["proxy_protocol"], True)
        self.assertEqual(shown["limits"]["head_bytes"], 131072)
        self.assertEqual(shown["limits"]["drain_timeout"], "25s")
        self.assertEqual(shown["agents"]["cidrs"], ["10.0.0.5/32"])
        self.assertEqual(shown["agents"]["scopes"], ["operator.read", "operator.write"])
        self.assertIs(shown["agents"]["inherit_token"], True)
        self.assertEqual(shown["external"]["trusted_proxies"], ["10.1.0.0/24"])
        self.assertEqual(shown["docker"]["engine"], "off")
