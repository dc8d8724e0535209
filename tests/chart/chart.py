"""Runs Helm as users do, and reads the objects that it renders."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
CHART = HERE.parent.parent / "charts" / "loopgate"
VALUES = sorted([*(CHART / "ci").glob("*-values.yaml"), *(CHART / "examples").glob("*-values.yaml")])
NEWEST = "1.37.0"


class HelmError(Exception):
    """Helm's exit status was not 0. The message is its standard error."""


def helm(*arguments: str) -> str:
    """Runs `helm` without the user's configuration and cluster, and returns its standard output."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "HELM_NAMESPACE": "claws"}
        done = subprocess.run(["helm", *arguments], env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def flags(values: dict | Path | None) -> list[str]:
    """Helm's flags for these values: `--values` for a file, a `--set-json` for each top-level key of a dictionary."""
    if values is None:
        return []
    if isinstance(values, Path):
        return ["--values", str(values)]
    return [part for key, value in values.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]


def render(values: dict | Path | None = None, *, chart: Path = CHART, kube: str = NEWEST, extra: tuple[str, ...] = ()) -> list[dict]:
    """The objects that `helm template` renders."""
    text = helm("template", "my", str(chart), "--kube-version", kube, *flags(values), *extra)
    return [document for document in yaml.safe_load_all(text) if document]


def only(objects: list[dict], kind: str, name: str | None = None) -> dict:
    """The only object of this kind, or of this kind and name."""
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def pod(objects: list[dict]) -> dict:
    """The pod specification of the StatefulSet."""
    return only(objects, "StatefulSet")["spec"]["template"]["spec"]


def containers(spec: dict) -> list[dict]:
    """All containers, init containers first."""
    return spec.get("initContainers", []) + spec["containers"]


def container(objects: list[dict], name: str) -> dict:
    """The container with this name in the StatefulSet's pod."""
    found = [c for c in containers(pod(objects)) if c["name"] == name]
    assert len(found) == 1, f"{len(found)} containers named {name}"
    return found[0]


def variable(objects: list[dict], name: str) -> str | None:
    """The value of an environment variable of the sidecar."""
    return next((v["value"] for v in container(objects, "loopgate")["env"] if v["name"] == name), None)


def listed(objects: list[dict], name: str) -> list[str]:
    """The items of a sidecar's environment variable that holds a list."""
    return (variable(objects, name) or "").split(",")
