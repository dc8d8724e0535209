"""The rendered objects are valid by the API schemas of the supported versions of Kubernetes."""

import tomllib
import unittest

import kubernetes_validate
import yaml

from chart import CHART, NEWEST, VALUES, helm, render
from test_example import example

# API groups of operators, for which there are no schemas here. test_objects.py tests their objects.
CUSTOM = {"cert-manager.io", "cilium.io", "gateway.networking.k8s.io", "monitoring.coreos.com", "trust.cert-manager.io"}


def validate(objects: list[dict], version: str) -> None:
    """Fails if an object is invalid; unknown fields are errors too."""
    for thing in objects:
        if thing["apiVersion"].partition("/")[0] in CUSTOM:
            continue
        kubernetes_validate.validate(thing, version.rpartition(".")[0], strict=True)


class Schemas(unittest.TestCase):
    def test_helm_lint_accepts_every_values_file(self):
        for values in VALUES:
            with self.subTest(values.name):
                helm("lint", "--strict", str(CHART), "--kube-version", NEWEST, "--values", str(values))

    def test_every_values_file_is_valid_on_the_newest_kubernetes(self):
        for values in VALUES:
            with self.subTest(values.name):
                validate(render(values), NEWEST)

    def test_every_values_file_is_valid_on_the_oldest_kubernetes_with_a_plain_container(self):
        for values in VALUES:
            with self.subTest(values.name):
                validate(render(values, kube="1.25.0"), "1.25.0")

    def test_the_defaults_are_valid_on_every_version_between(self):
        for minor in range(25, int(NEWEST.split(".")[1]) + 1):
            with self.subTest(minor):
                validate(render({"hostUsers": False}, kube=f"1.{minor}.0"), f"1.{minor}.0")

    def test_the_values_of_the_application_set_example_are_valid(self):
        fleet = yaml.safe_load((CHART / "examples" / "applicationset.yaml").read_text())
        source = fleet["spec"]["template"]["spec"]["sources"][0]
        validate(render(source["helm"]["valuesObject"]), NEWEST)
        self.assertEqual(source["targetRevision"], yaml.safe_load((CHART / "Chart.yaml").read_text())["version"])

    def test_native_sidecars_are_valid_in_the_first_version_that_has_them(self):
        validate(render(kube="1.29.0"), "1.29.0")

    def test_all_supported_kubernetes_versions_are_tested(self):
        versions = kubernetes_validate.utils.all_versions()
        oldest, newest = min(versions, key=order), max(versions, key=order)
        self.assertEqual(order(newest), order(NEWEST)[:2])
        self.assertIn(".".join(map(str, order(oldest))), yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"])

    def test_the_chart_has_the_version_of_the_program(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        program = tomllib.loads((CHART.parent.parent / "Cargo.toml").read_text())["package"]["version"]
        self.assertEqual((chart["version"], chart["appVersion"]), (program, program))

    def test_the_example_chart_is_valid_at_both_ends(self):
        for version in "1.25.0", NEWEST:
            with self.subTest(version):
                plain = () if version == NEWEST else ("--set", "loopgate.sidecar.native=false")
                with example() as chart:
                    validate(render(chart=chart, kube=version, extra=plain), version)


def order(version: str) -> tuple[int, int]:
    """Major and minor version, for comparisons."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
