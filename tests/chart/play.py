"""Runs the rendered chart as pods with `podman kube play`: with the real gateway, and then the pod of `helm test`.

PODMAN is the command of Podman, OPENCLAW the tree of tests/setup/openclaw.sh. Images are those of tests/setup/images.sh and docker/Dockerfile.
Where Podman lacks a feature of Kubernetes, the objects are changed here, and the difference is printed.
"""

import json
import os
import shlex
import subprocess
import sys
import time
import uuid

import yaml

from chart import only, pod, render

PODMAN = shlex.split(os.environ["PODMAN"])
TREE = os.environ["OPENCLAW"]
NAME = "my-loopgate"
VOLUME = f"loopgate-test-{uuid.uuid4().hex[:8]}"
IMAGE = {"tag": "latest", "pullPolicy": "Never"}
# Resource limits need controllers of control groups, which Podman lacks in these tests.
NO_RESOURCES = {"requests": None, "limits": None}
VALUES = {
    "gateway": {
        "image": {"repository": "localhost/loopgate-test/openclaw", **IMAGE},
        "resources": NO_RESOURCES,
        "extraVolumeMounts": [{"name": "tree", "mountPath": "/openclaw", "readOnly": True}],
    },
    "sidecar": {"image": {"repository": "localhost/loopgate-test/loopgate", **IMAGE}, "resources": NO_RESOURCES, "native": False},
    "persistence": {"existingClaim": VOLUME},
    "extraVolumes": [{"name": "tree", "hostPath": {"path": TREE}}],
}
DIFFERENCES = """\
Podman differs: kind StatefulSet: played as the Pod of its template
Podman differs: native sidecars: refused if they have probes, so sidecar.native is false
Podman differs: emptyDir: only root may write to it, so it is one in memory
Podman differs: subPath: its directory must exist before
Podman differs: Service, NetworkPolicy, ServiceAccount: ignored; the test pod knows the gateway's address"""


def podman(*arguments: str, check: bool = True, given: str | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run([*PODMAN, *arguments], input=given, capture_output=True, text=True, timeout=300)
    if check and done.returncode:
        raise SystemExit(f"podman {' '.join(arguments)}: {done.stderr}\n{done.stdout}")
    return done


def play(objects: list[dict], check: bool = True) -> subprocess.CompletedProcess:
    return podman("kube", "play", "--network", "podman", "-", check=check, given=yaml.safe_dump_all(objects))


def pod_of(objects: list[dict]) -> dict:
    """The Pod that the StatefulSet controller would create."""
    template = only(objects, "StatefulSet")["spec"]["template"]
    for volume in template["spec"]["volumes"]:
        if "emptyDir" in volume:
            volume["emptyDir"] = {"medium": "Memory"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}


def wait(what: str, seconds: int, holds) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            logs = [podman("logs", f"{NAME}-{name}", check=False) for name in ("gateway", "loopgate")]
            raise SystemExit(f"not in {seconds} s: {what}\n" + "\n".join(log.stdout[-3000:] + log.stderr[-3000:] for log in logs))
        time.sleep(1)


def is_ready(container: dict) -> bool:
    """Whether the readiness probe of the container passes, or else its liveness probe."""
    probe = container.get("readinessProbe", container.get("livenessProbe"))["exec"]["command"]
    return podman("exec", f"{NAME}-{container['name']}", *probe, check=False).returncode == 0


def main() -> None:
    print(DIFFERENCES)
    objects = render(VALUES)
    podman("volume", "create", VOLUME)
    make = "install -d -o 1000 -g 1000 /data/openclaw && install -d -o 65532 -g 65532 -m 700 /data/loopgate"
    podman("run", "--rm", "--volume", f"{VOLUME}:/data", "localhost/loopgate-test/debian", "sh", "-c", make)

    native = pod_of(render({**VALUES, "sidecar": {**VALUES["sidecar"], "native": True}}))
    refused = play([*(o for o in objects if o["kind"] in ("ConfigMap", "Secret")), native], check=False)
    podman("kube", "down", "-", check=False, given=yaml.safe_dump_all([native]))
    if not refused.returncode:
        raise SystemExit("Podman plays native sidecars now: play the chart as it is")
    print("Podman on native sidecars:", refused.stderr.strip().splitlines()[-1])

    played = [o for o in objects if o["kind"] in ("ConfigMap", "Secret")] + [pod_of(objects)]
    play(played)
    try:
        for container in pod(objects)["containers"]:
            wait(f"{container['name']} is ready", 240, lambda: is_ready(container))
        infra = podman("pod", "inspect", "--format", "{{.InfraContainerID}}", NAME).stdout.strip()
        networks = json.loads(podman("inspect", "--format", "{{json .NetworkSettings.Networks}}", infra).stdout)
        address = networks["podman"]["IPAddress"]
        test = only(objects, "Pod", f"{NAME}-test")
        container = test["spec"]["containers"][0]
        container["resources"] = {}
        values = {"GATEWAY_HOST": address, "GATEWAY_PORT": "18443", "LANE": "external"}
        container["env"] = [{"name": name, "value": value} for name, value in values.items()]
        container["volumeMounts"] = [{"name": "tree", "mountPath": "/openclaw", "readOnly": True}]
        test["spec"]["volumes"] = VALUES["extraVolumes"]
        play([test])
        wait("the pod of helm test has ended", 120, lambda: podman("wait", f"{NAME}-test-test", check=False).returncode == 0)
        output = podman("logs", f"{NAME}-test-test").stdout
        if "ok: TLS only, and the gateway answers behind it on the external lane" not in output:
            raise SystemExit(f"the pod of helm test: {output}")
        print("the pod of helm test:", output.strip())
        # Programs in the pod reach the gateway on loopback, and no program reaches it at the pod's address.
        direct = "fetch(`http://${process.argv[1]}:18789/healthz`).then(() => process.exit(0), () => process.exit(7))"
        inside = podman("exec", f"{NAME}-gateway", "node", "-e", direct, "127.0.0.1", check=False).returncode
        outside = podman("exec", f"{NAME}-gateway", "node", "-e", direct, address, check=False).returncode
        if (inside, outside) != (0, 7):
            raise SystemExit(f"the gateway listens elsewhere than on loopback: {inside}, {outside}")
        podman("kube", "down", "-", check=False, given=yaml.safe_dump_all([test]))
    finally:
        podman("kube", "down", "-", check=False, given=yaml.safe_dump_all(played))
        podman("volume", "rm", "--force", VOLUME, check=False)
    print("the chart runs as a pod")


if __name__ == "__main__":
    sys.exit(main())
