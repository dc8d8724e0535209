"""The named templates in another chart that has this one as a dependency."""

import shutil
import tempfile
import unittest
from contextlib import contextmanager
from pathlib import Path

from chart import CHART, HERE, HelmError, containers, helm, only, render


@contextmanager
def example():
    """Yields a copy of the example chart with this chart in its charts/, as after `helm dependency build`."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "example"
        shutil.copytree(HERE / "example", copy)
        helm("package", str(CHART), "--destination", str(copy / "charts"))
        yield copy


class Example(unittest.TestCase):
    def test_the_example_chart_lints(self):
        with example() as chart:
            helm("lint", "--strict", str(chart), "--kube-version", "1.33.0")

    def test_the_workload_gets_the_sidecar_and_the_volumes_it_mounts(self):
        with example() as chart:
            objects = render(chart=chart)
        spec = only(objects, "Deployment")["spec"]["template"]["spec"]
        sidecar = next(c for c in containers(spec) if c["name"] == "loopgate")
        self.assertEqual(sidecar["restartPolicy"], "Always")
        self.assertEqual(sidecar["image"], "ghcr.io/loopgate/loopgate:0.1.0")
        self.assertIn({"name": "LOOPGATE_GATEWAY", "value": "127.0.0.1:3000"}, sidecar["env"])
        self.assertIn({"name": "LOOPGATE_TLS_NAME", "value": "claw.example.com,example.claws.svc"}, sidecar["env"])
        volumes = [v["name"] for v in spec["volumes"]]
        self.assertEqual(len(volumes), len(set(volumes)))
        mounts = {m["name"] for c in containers(spec) for m in c.get("volumeMounts", [])}
        self.assertEqual(mounts, set(volumes))

    def test_the_dependency_renders_the_objects_that_the_sidecar_refers_to(self):
        with example() as chart:
            objects = render(chart=chart)
        spec = only(objects, "Deployment")["spec"]["template"]["spec"]
        config = next(v for v in spec["volumes"] if v["name"] == "loopgate-config")["configMap"]["name"]
        self.assertIn("loopgate.toml", only(objects, "ConfigMap", config)["data"])
        self.assertEqual(only(objects, "RoleBinding")["subjects"][0]["name"], spec["serviceAccountName"])
        self.assertFalse([o for o in objects if o["kind"] in ("StatefulSet", "Secret", "Pod")])

    def test_the_dependencys_values_are_checked_in_the_parent_too(self):
        with example() as chart:
            with self.assertRaises(HelmError) as refused:
                render({"loopgate": {"sidecars": {}}}, chart=chart)
        self.assertIn("Additional property sidecars", str(refused.exception))
