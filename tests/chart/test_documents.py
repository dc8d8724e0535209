"""The agent's pod in docs/kubernetes.md is valid and complete, and fits the chart as the document installs it."""

import re
import shlex
import unittest

import kubernetes_validate
import yaml

from chart import CHART, NEWEST, helm, only, variable

ROOT = CHART.parent.parent
DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()
COMMANDS = [shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.replace("\\\n", "").splitlines()]


def command(*words: str) -> list[str]:
    """The only command of the document that begins with these words."""
    found = [each for each in COMMANDS if each[: len(words)] == list(words)]
    assert len(found) == 1, f"{len(found)} commands {words}"
    return found[0]


class Documents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.objects = list(yaml.safe_load_all(re.search(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[1]))
        cls.pod = only(cls.objects, "Pod")
        _, _, _, release, _, *options = command("helm", "upgrade", "--install")
        text = helm("template", release, str(CHART), "--kube-version", NEWEST, *options)
        cls.chart = [each for each in yaml.safe_load_all(text) if each]

    def test_the_documents_objects_are_valid_and_in_the_charts_namespace(self):
        for each in self.objects:
            kubernetes_validate.validate(each, NEWEST.rpartition(".")[0], strict=True)
            self.assertEqual(each["metadata"]["namespace"], only(self.chart, "StatefulSet")["metadata"]["namespace"])

    def test_the_pod_runs_the_images_program_and_connects_to_the_charts_service(self):
        program, verb, *flags = self.pod["spec"]["containers"][0]["command"]
        self.assertIn(f'ENTRYPOINT ["{program}", "{verb}", "--"]', (ROOT / "docker" / "agent.Dockerfile").read_text())
        service = only(self.chart, "Service")
        self.assertIn(f"--sidecar={service['metadata']['name']}:{service['spec']['ports'][0]['port']}", flags)
        self.assertIn(service["metadata"]["name"], variable(self.chart, "LOOPGATE_TLS_NAME").split(","))

    def test_everything_that_the_pod_refers_to_exists(self):
        spec = self.pod["spec"]
        only(self.objects, "ServiceAccount", spec["serviceAccountName"])
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        self.assertEqual(mounts.keys(), volumes.keys())
        flags = spec["containers"][0]["command"]
        create = command("kubectl", "create", "configmap")
        self.assertEqual(volumes["loopgate-ca"]["configMap"]["name"], create[3])
        file = create[-1].removeprefix("--from-file=")
        self.assertEqual(command("kubectl", "exec")[-1], f">{file}")
        self.assertIn(f"--ca={mounts['loopgate-ca']}/{file}", flags)
        token = volumes["loopgate-token"]["projected"]["sources"][0]["serviceAccountToken"]
        self.assertEqual(token["audience"], variable(self.chart, "LOOPGATE_KUBERNETES_AUDIENCE"))
        self.assertIn(f"--kubernetes-token={mounts['loopgate-token']}/{token['path']}", flags)

    def test_agents_get_the_gateways_token(self):
        self.assertEqual(variable(self.chart, "LOOPGATE_INHERIT_TOKEN"), "true")
