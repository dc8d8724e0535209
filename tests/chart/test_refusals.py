"""Values that the chart must refuse, and the error messages."""

import json
import re
import unittest

import yaml

from chart import CHART, NEWEST, HelmError, helm, render

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

UNKNOWN = "Additional property"
TYPE = "Invalid type"

# Values, and a part of the error message.
REFUSED = [
    ({"gatway": {}}, UNKNOWN),
    ({"gateway": {"binds": "lan"}}, UNKNOWN),
    ({"sidecar": {"image": {"tags": "x"}}}, UNKNOWN),
    ({"sidecar": {"readinessProbe": {"httpGet": {}}}}, UNKNOWN),
    ({"tls": {"clientCA": {"file": "x"}}}, UNKNOWN),
    ({"metrics": {"serviceMonitor": {"enable": True}}}, UNKNOWN),
    ({"gateway": {"port": "18789"}}, TYPE),
    ({"gateway": {"port": 65536}}, "less than or equal to 65535"),
    ({"gateway": {"replicas": 2}}, "less than or equal to 1"),
    ({"gateway": {"extraEnv": {"A": "b"}}}, TYPE),
    ({"gateway": {"image": {"digest": "0123"}}}, "Does not match pattern"),
    ({"sidecar": {"native": "yes"}}, "must be one of"),
    ({"hostUsers": "no"}, TYPE),
    ({"sidecar": {"listen": []}}, "at least 1 items"),
    ({"sidecar": {"listen": ["bridge:18789"]}}, "Does not match pattern"),
    ({"sidecar": {"ownAddresses": "agents"}}, "must be one of"),
    ({"sidecar": {"drainTimeoutSeconds": "10s"}}, TYPE),
    ({"agents": {"cidrs": "10.0.0.0/8"}}, TYPE),
    ({"agents": {"cidrs": ["everyone"]}}, "Does not match pattern"),
    ({"agents": {"cidrs": ["0.0.0.0/0"]}}, "Does not match pattern"),
    ({"agents": {"cidrs": ["::/0"]}}, "Does not match pattern"),
    ({"agents": {"scopes": ["operator.read,operator.write"]}}, "Does not match pattern"),
    ({"external": {"trustedProxies": ["10.0.0.0/33"]}}, "Does not match pattern"),
    ({"external": {"trustedProxies": ["10.0.0.256"]}}, "Does not match pattern"),
    ({"external": {"deny": ["fd00::/129"]}}, "Does not match pattern"),
    ({"fullnameOverride": "Foo_BAR"}, "Does not match pattern"),
    ({"nameOverride": "a b"}, "Does not match pattern"),
    ({"tls": {"names": ["a: b"]}}, "Does not match pattern"),
    ({"tls": {"names": [{"a": "b"}]}}, TYPE),
    ({"sidecar": None}, "sidecar is required"),
    ({"sidecar": {"listen": None}}, "listen is required"),
    ({"gateway": {"image": {"tag": None}}}, "tag is required"),
    ({"agents": {"discovery": "docker"}}, "must be one of"),
    ({"agents": {"discovery": True}}, "must be one of"),
    ({"agents": {"audience": ""}}, "Does not match pattern"),
    ({"agents": {"audience": "a b"}}, "Does not match pattern"),
    ({"service": {"type": "ExternalName"}}, "must be one of"),
    ({"podAnnotations": {"a": 1}}, TYPE),
    ({"extraVolumes": [{"emptyDir": {}}]}, "name is required"),
    ({"extraObjects": [{"kind": "ConfigMap"}]}, "apiVersion is required"),
    # The schema can't express these.
    ({"gateway": {"config": {"gateway": {"bind": "lan"}}}}, "bind must be loopback"),
    ({"gateway": {"config": {"gateway": {"trustedProxies": ["127.0.0.1"]}}}}, "trustedProxies is set by the chart"),
    ({"gateway": {"config": {"gateway": {"port": 1}}}}, "port is set by the chart"),
    ({"gateway": {"config": {"gateway": {"auth": {"token": "x"}}}}}, "readable in a ConfigMap"),
    ({"gateway": {"config": {"gateway": {"tls": {"enabled": True}}}}}, "tls.enabled must be false"),
    ({"gateway": {"port": 9180}}, "metrics.port and gateway.port must differ"),
    ({"sidecar": {"config": {"log": {"level": "debug"}}}}, "set sidecar.logLevel"),
    ({"sidecar": {"config": {"discovery": "kubernetes"}}}, "set agents.discovery"),
    ({"sidecar": {"config": {"tls": {"cert": "/a"}}}, "tls": {"existingSecret": "x"}}, "set tls.existingSecret"),
    ({"sidecar": {"extraEnv": [{"name": "LOOPGATE_ADMIN", "value": "off"}]}}, "LOOPGATE_ADMIN is set by the chart"),
    ({"ingress": {"enabled": True, "hosts": ["*.example.com"]}}, "*.example.com is not an origin"),
    ({"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["*.example.com"]}}, "*.example.com is not an origin"),
    ({"certificate": {"enabled": True}}, "certificate.issuerRef.name"),
    ({"certificate": {"enabled": True, "issuerRef": {"name": "ca"}}, "tls": {"existingSecret": "x"}}, "exclude each other"),
    ({"tls": {"clientCA": {"secret": "a", "configMap": "b"}}}, "exclude each other"),
    ({"agents": {"attested": True}}, "agents.discovery=kubernetes"),
    ({"agents": {"uris": ["spiffe://a/b"]}}, "needs tls.clientCA"),
    ({"metrics": {"podMonitor": {"enabled": True}}}, "need metrics.enabled"),
    ({"metrics": {"enabled": True, "podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}, "twice"),
    ({"metrics": {"port": 18789}}, "must differ"),
    ({"metrics": {"port": 18443}}, "must differ"),
    ({"external": {"proxyProtocol": True}}, "needs external.trustedProxies"),
    ({"sidecar": {"plainPort": 8080}}, "needs external.trustedProxies"),
    ({"sidecar": {"plainPort": 18443}, "external": {"trustedProxies": ["10.1.0.0/24"]}}, "plainPort and sidecar.port must differ"),
    ({"sidecar": {"plainPort": 9180}, "external": {"trustedProxies": ["10.1.0.0/24"]}}, "plainPort and metrics.port must differ"),
    ({"sidecar": {"plainPort": 0}}, "sidecar.plainPort"),
    ({"sidecar": {"forward": [18789]}}, "sidecar.forward and gateway.port must differ"),
    ({"sidecar": {"forward": [3334, 18443]}}, "sidecar.forward and sidecar.port must differ"),
    ({"sidecar": {"forward": [3334, 3334]}}, "sidecar.forward"),
    ({"sidecar": {"listen": ["eth0", "[::]"], "forward": [3334]}}, "sidecar.listen can't have [::] with sidecar.forward"),
    ({"sidecar": {"forward": ["18793:3334"]}}, TYPE),
    ({"ingress": {"enabled": True}}, "needs ingress.hosts"),
    ({"httpRoute": {"enabled": True}}, "needs httpRoute.parentRefs"),
    ({"httpRoute": {"backendTLSPolicy": {"enabled": True}}}, "caCertificateRefs"),
    ({"terminationGracePeriodSeconds": 10}, "more than sidecar.drainTimeoutSeconds"),
    ({"gateway": {"enabled": False}, "state": {"kind": "claim"}}, "needs state.existingClaim"),
    ({"gateway": {"config": {"gateway": {"auth": {"mode": "trusted-proxy"}}}}, "agents": {"inheritToken": True}}, "takes no token"),
    ({"gateway": {"enabled": False}, "agents": {"inheritToken": True}}, "needs gateway.token.existingSecret"),
    ({"agents": {"unpair": True}}, "needs agents.discovery"),
    ({"gateway": {"config": {"gateway": {"auth": {"mode": "trusted-proxy"}}}}, "agents": {"unpair": True, "discovery": "kubernetes"}}, "takes no token"),
    ({"gateway": {"enabled": False}, "agents": {"unpair": True, "discovery": "kubernetes"}}, "agents.unpair needs gateway.token.existingSecret"),
    ({"sidecar": {"config": {"agents": {"unpair": True}}}}, "has a value of its own"),
    ({"gateway": {"enabled": False}, "certificate": {"enabled": True, "issuerRef": {"name": "ca"}}}, "needs names"),
]


def objects_of(schema):
    """Each object schema in `schema`."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            yield schema
        for value in schema.values():
            yield from objects_of(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects_of(value)


def defaults(values, path=""):
    """The dotted path of each leaf of the default values. A value that may be null, such as a whole Kubernetes object, is a leaf."""
    for key, value in values.items():
        if isinstance(value, dict) and value and lookup(f"{path}{key}").get("type") == "object":
            yield from defaults(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def lookup(path):
    """The schema of the value at a dotted path."""
    schema = SCHEMA
    for key in path.split("."):
        schema = resolve(schema).get("properties", {}).get(key, {})
    return resolve(schema)


def resolve(schema):
    """The schema itself, or the definition that it refers to."""
    return SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


class Refusals(unittest.TestCase):
    def test_wrong_values_are_refused_with_the_reason(self):
        for values, reason in REFUSED:
            with self.subTest(json.dumps(values)):
                with self.assertRaises(HelmError) as refused:
                    render(values)
                self.assertIn(reason, str(refused.exception))

    def test_a_native_sidecar_is_refused_if_kubernetes_does_not_support_it(self):
        with self.assertRaises(HelmError) as refused:
            render({"sidecar": {"native": True}}, kube="1.28.9")
        self.assertIn("set sidecar.native=false", str(refused.exception))

    def test_mounts_that_give_the_gateway_loopgates_keys_are_refused(self):
        whole, part = ({"name": name, "mountPath": "/x", **more} for name, more in (("data", {}), ("keys", {"subPath": "a"})))
        for values in (
            {"state": {"subPath": "openclaw"}},
            {"state": {"subPath": "./openclaw/keys"}},
            {"state": {"volumeName": "tmp"}},
            {"gateway": {"extraVolumeMounts": [whole]}},
            {"gateway": {"extraVolumeMounts": [part]}, "state": {"volumeName": "keys", "subPath": "a/b"}},
            {"gateway": {"extraVolumeMounts": [{"name": "loopgate-state", "mountPath": "/x"}]}, "state": {"kind": "claim"}},
        ):
            with self.subTest(json.dumps(values)):
                with self.assertRaises(HelmError) as refused:
                    render(values)
                self.assertIn("would read loopgate's keys", str(refused.exception))
        render({"state": {"subPath": "openclaw-keys"}})
        render({"gateway": {"extraVolumeMounts": [part]}, "state": {"volumeName": "keys", "subPath": "ab"}})

    def test_the_sidecars_file_may_name_files_that_are_mounted_by_other_means(self):
        render({"sidecar": {"config": {"tls": {"cert": "/vault/a.crt", "key": "/vault/a.key"}, "gateway": {"token_file": "/vault/token"}}}})

    def test_each_key_that_is_refused_in_the_file_has_a_value_in_the_chart(self):
        template = (CHART / "templates" / "_gateway.tpl").read_text()
        table = template.partition('define "loopgate.validate.config"')[2].partition("{{- range")[0]
        words = re.findall(r'"([a-z_]+(?:\.[a-z_]+)?)" "([A-Za-z.]+)"', table)
        self.assertGreater(len(words), 20)
        for key, value in words:
            with self.subTest(key):
                self.assertTrue(lookup(value), f"no value {value}")

    def test_a_release_name_that_is_no_service_name_is_changed_or_refused(self):
        def service(release):
            objects = yaml.safe_load_all(helm("template", release, str(CHART), "--kube-version", NEWEST))
            return next(o["metadata"]["name"] for o in objects if o and o["kind"] == "Service")

        self.assertEqual(service("a.b"), "a-b-loopgate")
        with self.assertRaises(HelmError) as refused:
            service("1a")
        self.assertIn("set fullnameOverride", str(refused.exception))

    def test_kubernetes_older_than_the_oldest_tested_version_is_refused(self):
        with self.assertRaises(HelmError) as refused:
            render({"sidecar": {"native": False}}, kube="1.24.0")
        self.assertIn("incompatible with Kubernetes", str(refused.exception))

    def test_every_object_of_the_schema_refuses_unknown_keys(self):
        lists = [SCHEMA["definitions"][name].get("items") for name in ("named", "env")]
        for schema in objects_of(SCHEMA):
            if schema not in lists:
                self.assertIs(schema.get("additionalProperties"), False, schema)

    def test_every_value_is_in_the_schema_and_in_the_readme(self):
        readme = (CHART / "README.md").read_text()
        values = yaml.safe_load(helm("show", "values", str(CHART)))
        for path in defaults(values):
            with self.subTest(path):
                self.assertTrue(lookup(path), "not in the schema")
                self.assertTrue(f"`{path}`" in readme, "not in the README")
