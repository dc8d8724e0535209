"""The examples for other charts and operators contain the container of the named template, and fit those charts."""

import copy
import tempfile
import unittest
from pathlib import Path

import yaml

from chart import CHART, containers, only, render
from test_example import example
from test_schemas import validate

ELSEWHERE = CHART / "examples" / "elsewhere"
# The settings of the examples: a plain container, state on the pod's volume `data`, two names.
VALUES = {
    "loopgate": {
        "gateway": {"enabled": False, "port": 18789},
        "sidecar": {"native": False, "config": None},
        "state": {"volumeName": "data", "subPath": "loopgate"},
        "tls": {"names": ["claw", "claw.default.svc"]},
        "agents": {"discovery": "off"},
    }
}
# The structure of the objects of a public chart that has no values for additional containers.
RENDERED = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: claw}
spec:
  replicas: 1
  selector: {matchLabels: {app: claw}}
  template:
    metadata: {labels: {app: claw}}
    spec:
      initContainers:
        - {name: init-config, image: "ghcr.io/openclaw/openclaw:2026.9.6", command: [sh, -c, "true"]}
      containers:
        - name: main
          image: ghcr.io/openclaw/openclaw:2026.9.6
          command: [node, dist/index.js]
          args: [gateway, --bind, lan, --port, "18789"]
          ports: [{containerPort: 18789, protocol: TCP}]
          livenessProbe: {tcpSocket: {port: 18789}}
          readinessProbe: {tcpSocket: {port: 18789}}
          volumeMounts: [{name: data, mountPath: /home/node/.openclaw}]
      volumes:
        - {name: data, persistentVolumeClaim: {claimName: claw}}
---
apiVersion: v1
kind: Service
metadata: {name: claw}
spec:
  selector: {app: claw}
  ports: [{name: gateway, port: 18789, targetPort: 18789}]
"""
# The fields of a pod whose lists Kubernetes merges, and the key by which it merges them.
KEYS = {"containers": "name", "initContainers": "name", "volumes": "name", "ports": "port"}


def read_example(name: str) -> dict:
    return yaml.safe_load((ELSEWHERE / name).read_text())


def strategic_merge(base, patch):
    """A strategic merge patch: merges objects by key, and the lists of KEYS by name; null removes."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    merge = copy.deepcopy(base)
    for key, value in patch.items():
        if value is None:
            merge.pop(key, None)
        elif key in KEYS and isinstance(merge.get(key), list):
            by = KEYS[key]
            for item in value:
                known = [index for index, has in enumerate(merge[key]) if has.get(by) == item.get(by)]
                if known:
                    merge[key][known[0]] = strategic_merge(merge[key][known[0]], item)
                else:
                    merge[key].append(item)
        else:
            merge[key] = strategic_merge(merge.get(key), value)
    return merge


class Elsewhere(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values, example() as chart:
            yaml.safe_dump(VALUES, values)
            values.flush()
            spec = only(render(Path(values.name), chart=chart), "Deployment")["spec"]["template"]["spec"]
        cls.sidecar = next(container for container in containers(spec) if container["name"] == "loopgate")

    def test_the_operators_instance_has_the_sidecar_of_the_named_template(self):
        instance = read_example("openclaw-operator.yaml")["spec"]
        self.assertEqual(instance["sidecars"], [self.sidecar])
        # Neither the operator's proxy nor the gateway may be reachable without loopgate.
        self.assertIs(instance["gateway"]["enabled"], False)
        self.assertEqual(instance["config"]["raw"]["gateway"], {"bind": "loopback", "trustedProxies": ["127.0.0.2"]})
        self.assertEqual([port["targetPort"] for port in instance["networking"]["service"]["ports"]], [18443])

    def test_the_values_for_app_template_have_the_sidecar_of_the_named_template(self):
        values = read_example("app-template.yaml")["app-template"]
        controller = values["controllers"]["main"]["containers"]
        given, sidecar = controller["loopgate"], self.sidecar
        self.assertEqual(f"{given['image']['repository']}:{given['image']['tag']}", sidecar["image"])
        self.assertEqual([{"name": name, "value": value} for name, value in given["env"].items()], sidecar["env"])
        for key in ("command", "args", "resources", "securityContext"):
            self.assertEqual(given[key], sidecar[key])
        for probe in ("liveness", "readiness"):
            self.assertEqual(given["probes"][probe]["spec"], sidecar[f"{probe}Probe"])
        [mount] = values["persistence"]["data"]["advancedMounts"]["main"]["loopgate"]
        self.assertEqual([{"name": "data", "mountPath": mount["path"], "subPath": mount["subPath"]}], sidecar["volumeMounts"])
        self.assertEqual(controller["main"]["args"][1:3], ["--bind", "loopback"])
        self.assertEqual(values["service"]["main"]["ports"]["http"]["targetPort"], 18443)

    def test_the_patches_make_valid_objects_whose_gateway_is_on_loopback(self):
        deployment, service = yaml.safe_load_all(RENDERED)
        deployment, service = strategic_merge(deployment, read_example("deployment.yaml")), strategic_merge(service, read_example("service.yaml"))
        validate([deployment, service], "1.25.0")
        spec = deployment["spec"]["template"]["spec"]
        gateway, sidecar = spec["containers"]
        self.assertEqual(sidecar, self.sidecar)
        self.assertEqual(gateway["args"], ["gateway", "--bind", "loopback", "--port", "18789"])
        self.assertFalse([key for key in gateway if key.endswith("Probe")])
        self.assertEqual(gateway["image"], "ghcr.io/openclaw/openclaw:2026.9.6")
        self.assertEqual(service["spec"]["ports"], [{"name": "gateway", "port": 18789, "targetPort": 18443}])
        self.assertEqual(read_example("kustomization.yaml")["patches"], [{"path": "deployment.yaml"}, {"path": "service.yaml"}])
