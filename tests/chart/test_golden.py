"""The chart's output is exactly that in golden/, so that changes are visible in review. `run -u` updates it."""

import base64
import difflib
import json
import os
import re
import unittest

from chart import CHART, HERE, NEWEST, VALUES, flags, helm, only, render

GOLDEN = ["default", "plain-container", "everything", "discovery"]


def rendered(name: str) -> str:
    """The output of `helm template`, with the only random value replaced."""
    text = helm("template", "my", str(CHART), "--kube-version", NEWEST, *flags(CHART / "ci" / f"{name}-values.yaml"))
    return re.sub(r"(?m)^  token: \S{64}$", "  token: RANDOM", text)


def notes(values) -> str:
    """The text of NOTES.txt. Helm prints it only with a cluster, so an extra ConfigMap renders it."""
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}}
    config_map["data"] = {"text": '{{ include "loopgate/templates/NOTES.txt" . | b64enc }}'}
    objects = render(values, extra=("--set-json", f"extraObjects={json.dumps([config_map])}"))
    return base64.b64decode(only(objects, "ConfigMap", "notes")["data"]["text"]).decode()


class Golden(unittest.TestCase):
    def test_the_chart_renders_as_recorded(self):
        for name in GOLDEN:
            with self.subTest(name):
                file, actual = HERE / "golden" / f"{name}.yaml", rendered(name)
                if os.environ.get("UPDATE_GOLDEN"):
                    file.write_text(actual)
                difference = difflib.unified_diff(file.read_text().splitlines(), actual.splitlines(), "recorded", "rendered", lineterm="")
                self.assertFalse("\n".join(difference))

    def test_the_notes_render_for_every_values_file(self):
        for values in VALUES:
            with self.subTest(values.name):
                text = notes(values)
                self.assertNotIn("<no value>", text)
                self.assertNotIn("%!", text)
                if values.name == "default-values.yaml":
                    for needed in "devices approve", "cert show", "cert export", "my-loopgate-token", "helm test my":
                        self.assertIn(needed, text)
                    self.assertNotIn("WARNING", text)

    def test_the_notes_warn_of_an_ingress_that_is_not_a_trusted_proxy(self):
        self.assertIn("WARNING: external.trustedProxies is empty", notes({"ingress": {"enabled": True, "hosts": ["a.example"]}}))
