"""The rendered objects: hardening, no way to the gateway without loopgate, and the configuration from the values."""

import json
import unittest

from chart import VALUES, HelmError, container, containers, listed, only, pod, render, variable

PLAIN = {"sidecar": {"native": False}}


def every():
    """Each values file's name and objects."""
    return ((values.name, render(values)) for values in VALUES)


def pods(objects):
    """Each pod specification: the StatefulSet's and the test pods'."""
    for thing in objects:
        if thing["kind"] == "StatefulSet":
            yield thing["spec"]["template"]["spec"]
        elif thing["kind"] == "Pod":
            yield thing["spec"]


def listeners(objects):
    """The ports of loopgate's listeners for clients: TLS first, then plain HTTP and forwards."""
    ports = [(p["name"], p["containerPort"]) for p in container(objects, "loopgate")["ports"]]
    assert ports[0][0] == "loopgate", ports
    return [port for name, port in ports if name != "metrics"]


class Hardening(unittest.TestCase):
    def test_every_pod_meets_the_restricted_standard(self):
        for name, objects in every():
            for spec in pods(objects):
                for key in "hostNetwork", "hostPID", "hostIPC":
                    self.assertNotIn(key, spec)
                for volume in spec.get("volumes", []):
                    kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
                    self.assertTrue(kinds & volume.keys(), volume)
                for each in containers(spec):
                    if each["name"] in ("prepare", "helper"):
                        continue  # containers of the values file
                    with self.subTest(name, container=each["name"]):
                        security = each["securityContext"]
                        self.assertIs(security["runAsNonRoot"], True)
                        self.assertGreater(security["runAsUser"], 0)
                        self.assertIs(security["allowPrivilegeEscalation"], False)
                        self.assertIs(security["readOnlyRootFilesystem"], True)
                        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
                        self.assertEqual(security["seccompProfile"], {"type": "RuntimeDefault"})
                        self.assertFalse([p for p in each.get("ports", []) if "hostPort" in p])

    def test_loopgate_runs_as_its_own_user(self):
        objects = render()
        self.assertEqual(container(objects, "loopgate")["securityContext"]["runAsUser"], 65532)
        self.assertNotEqual(container(objects, "gateway")["securityContext"]["runAsUser"], 65532)

    def test_no_pod_gets_a_service_account_token_by_itself(self):
        for name, objects in every():
            for spec in pods(objects):
                with self.subTest(name):
                    self.assertIs(spec["automountServiceAccountToken"], False)

    def test_no_other_container_mounts_the_sidecars_files(self):
        for name, objects in every():
            for spec in pods(objects):
                for each in containers(spec):
                    if each["name"] == "loopgate":
                        continue
                    with self.subTest(name, container=each["name"]):
                        mounts = each.get("volumeMounts", [])
                        self.assertFalse([m for m in mounts if m["name"].startswith("loopgate-")])
                        self.assertFalse([m for m in mounts if m["name"] == "data" and m.get("subPath") != "openclaw"])

    def test_the_token_is_in_no_argument_no_config_map_and_only_one_variable(self):
        for name, objects in every():
            for spec in pods(objects):
                for each in containers(spec):
                    for variable in each.get("env", []):
                        if "TOKEN" in variable["name"] and variable["name"] not in ("LOOPGATE_INHERIT_TOKEN", "LOOPGATE_TOKEN_FILE"):
                            with self.subTest(name):
                                self.assertIn("secretKeyRef", variable["valueFrom"])
                                self.assertEqual(each["name"], "gateway")
        for thing in render():
            if thing["kind"] == "ConfigMap":
                self.assertNotIn("token\":", json.dumps(thing["data"]))


class OnlyThroughLoopgate(unittest.TestCase):
    def test_the_service_leads_to_loopgates_listeners_and_no_other(self):
        for name, objects in every():
            if not any(o["kind"] == "StatefulSet" for o in objects):
                continue
            with self.subTest(name):
                service = only(objects, "Service", only(objects, "StatefulSet")["spec"]["serviceName"])
                self.assertEqual([p["targetPort"] for p in service["spec"]["ports"]], listeners(objects))

    def test_the_gateway_container_declares_no_port(self):
        for name, objects in every():
            if any(o["kind"] == "StatefulSet" for o in objects):
                with self.subTest(name):
                    self.assertNotIn("ports", container(objects, "gateway"))

    def test_the_gateway_is_on_loopback_and_trusts_only_the_external_lanes_address(self):
        for name, objects in every():
            for thing in objects:
                if thing["kind"] == "ConfigMap" and "openclaw.json" in thing["data"]:
                    with self.subTest(name):
                        gateway = json.loads(thing["data"]["openclaw.json"])["gateway"]
                        self.assertEqual(gateway["bind"], "loopback")
                        self.assertEqual(gateway["mode"], "local")
                        self.assertEqual(gateway["trustedProxies"], ["127.0.0.2"])
                        self.assertEqual(variable(objects, "LOOPGATE_GATEWAY"), f"127.0.0.1:{gateway['port']}")

    def test_the_network_policy_admits_only_loopgates_listeners(self):
        for name, objects in every():
            for policy in (o for o in objects if o["kind"] == "NetworkPolicy"):
                with self.subTest(name):
                    sidecar = {p["name"]: p["containerPort"] for p in container(objects, "loopgate")["ports"]}
                    rules = policy["spec"]["ingress"]
                    self.assertEqual(rules[0]["ports"], [{"port": port, "protocol": "TCP"} for port in listeners(objects)])
                    for rule in rules[1:]:
                        self.assertEqual(rule["ports"], [{"port": sidecar["metrics"], "protocol": "TCP"}])
                        self.assertTrue(rule["from"])
                    labels = only(objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
                    self.assertLessEqual(policy["spec"]["podSelector"]["matchLabels"].items(), labels.items())

    def test_a_policy_that_names_peers_also_admits_the_test_pod(self):
        objects = render({"networkPolicy": {"from": [{"podSelector": {"matchLabels": {"a": "b"}}}]}})
        peers = only(objects, "NetworkPolicy")["spec"]["ingress"][0]["from"]
        labels = only(objects, "Pod")["metadata"]["labels"]
        self.assertEqual(len(peers), 2)
        self.assertLessEqual(peers[1]["podSelector"]["matchLabels"].items(), labels.items())

    def test_the_admin_endpoint_is_on_loopback_unless_metrics_are_on(self):
        self.assertEqual(variable(render(), "LOOPGATE_ADMIN"), "127.0.0.1:9180")
        self.assertEqual(variable(render({"metrics": {"enabled": True}}), "LOOPGATE_ADMIN"), "0.0.0.0:9180")
        self.assertEqual(len(only(render({"metrics": {"enabled": True}}), "NetworkPolicy")["spec"]["ingress"]), 1)


class Pod(unittest.TestCase):
    def test_mesh_injection_is_off_unless_the_values_turn_it_on(self):
        istio, ambient, linkerd = "sidecar.istio.io/inject", "istio.io/dataplane-mode", "linkerd.io/inject"
        wanted = {"podLabels": {istio: "true", ambient: "ambient"}, "podAnnotations": {linkerd: "enabled"}}
        for values, expected in (None, ("false", "none", "disabled")), (wanted, ("true", "ambient", "enabled")):
            metadata = only(render(values), "StatefulSet")["spec"]["template"]["metadata"]
            found = metadata["labels"].get(istio), metadata["labels"].get(ambient), metadata["annotations"].get(linkerd)
            self.assertEqual(found, expected)

    def test_the_pod_has_its_own_user_namespace_if_the_values_say_so(self):
        self.assertNotIn("hostUsers", pod(render()))
        self.assertIs(pod(render({"hostUsers": False}))["hostUsers"], False)

    def test_helm_test_checks_the_agent_lane_if_pods_are_discovered(self):
        def lanes(values):
            pods = [o for o in render(values) if o["kind"] == "Pod"]
            variables = [{v["name"]: v["value"] for v in p["spec"]["containers"][0]["env"]} for p in pods]
            return [(p["metadata"]["labels"].get("loopgate.dev/agent"), v.get("LANE")) for p, v in zip(pods, variables)]

        self.assertEqual(lanes(None), [(None, None)])
        self.assertEqual(lanes({"agents": {"discovery": "kubernetes"}}), [(None, None), ("address", "agent")])


class Sidecar(unittest.TestCase):
    def test_the_sidecar_is_native_by_default_and_plain_if_the_values_say_so(self):
        native, plain = render(), render(PLAIN)
        self.assertEqual([c["name"] for c in pod(native)["initContainers"]], ["loopgate"])
        self.assertEqual(container(native, "loopgate")["restartPolicy"], "Always")
        self.assertNotIn("initContainers", pod(plain))
        self.assertEqual([c["name"] for c in pod(plain)["containers"]], ["gateway", "loopgate"])
        self.assertNotIn("restartPolicy", container(plain, "loopgate"))

    def test_the_sidecar_is_native_if_kubernetes_supports_it(self):
        for kube, place in ("1.28.9", "containers"), ("1.29.0", "initContainers"), ("1.29.3-gke.100", "initContainers"):
            with self.subTest(kube):
                self.assertIn("loopgate", [c["name"] for c in pod(render(kube=kube)).get(place, [])])

    def test_a_native_sidecar_has_no_startup_probe_that_would_wait_for_the_gateway(self):
        sidecar = container(render(), "loopgate")
        self.assertNotIn("startupProbe", sidecar)
        self.assertIn("--live", sidecar["livenessProbe"]["exec"]["command"])
        self.assertNotIn("--live", sidecar["readinessProbe"]["exec"]["command"])

    def test_probes_use_the_port_of_the_admin_endpoint(self):
        sidecar = container(render({"metrics": {"port": 9999}}), "loopgate")
        for probe in "livenessProbe", "readinessProbe":
            self.assertEqual(sidecar[probe]["exec"]["command"][-1], "127.0.0.1:9999")

    def test_the_grace_period_covers_the_gateway_and_the_drain(self):
        self.assertEqual(pod(render())["terminationGracePeriodSeconds"], 35)
        objects = render({"sidecar": {"drainTimeoutSeconds": 100}, "gateway": {"stopSeconds": 1}})
        self.assertEqual(pod(objects)["terminationGracePeriodSeconds"], 106)
        self.assertEqual(variable(objects, "LOOPGATE_DRAIN_TIMEOUT"), "100s")

    def test_lists_are_separated_by_commas(self):
        objects = render(
            {
                "sidecar": {"listen": ["eth0", "[::]"], "port": 443},
                "agents": {"cidrs": ["10.0.0.5", "10.0.0.6/32"]},
                "external": {"trustedProxies": ["10.1.0.0/24", "fd00::/64"], "allow": ["10.0.0.0/8"], "deny": ["10.6.6.6"]},
                "tls": {"names": ["a.example", "my-loopgate"]},
            }
        )
        self.assertEqual(listed(objects, "LOOPGATE_LISTEN"), ["eth0:443", "[::]:443"])
        self.assertEqual(listed(objects, "LOOPGATE_AGENT_CIDR"), ["10.0.0.5", "10.0.0.6/32"])
        self.assertEqual(listed(objects, "LOOPGATE_TRUSTED_PROXY"), ["10.1.0.0/24", "fd00::/64"])
        self.assertEqual(listed(objects, "LOOPGATE_ALLOW"), ["10.0.0.0/8"])
        self.assertEqual(listed(objects, "LOOPGATE_DENY"), ["10.6.6.6"])
        names = ["my-loopgate", "my-loopgate.claws", "my-loopgate.claws.svc", "my-loopgate.claws.svc.cluster.local", "a.example"]
        self.assertEqual(listed(objects, "LOOPGATE_TLS_NAME"), names)

    def test_large_numbers_are_not_written_as_floats(self):
        objects = render({"sidecar": {"maxConnections": 50_000_000, "config": {"limits": {"head_bytes": 2_000_000}}}})
        self.assertEqual(variable(objects, "LOOPGATE_MAX_CONNECTIONS"), "50000000")
        self.assertIn("head_bytes = 2000000\n", only(objects, "ConfigMap", "my-loopgate-sidecar")["data"]["loopgate.toml"] + "\n")

    def test_a_gateway_without_a_configuration_gets_the_charts(self):
        text = only(render({"gateway": {"config": None}}), "ConfigMap", "my-loopgate-gateway")["data"]["openclaw.json"]
        self.assertEqual(json.loads(text)["gateway"]["trustedProxies"], ["127.0.0.2"])

    def test_a_change_of_either_configuration_rolls_the_pod(self):
        def checksums(values):
            annotations = only(render(values), "StatefulSet")["spec"]["template"]["metadata"]["annotations"]
            return annotations["checksum/gateway"], annotations["checksum/sidecar"]

        before = checksums(None)
        self.assertEqual(before, checksums(None))
        sidecar = checksums({"sidecar": {"config": {"limits": {"head_fields": 64}}}})
        gateway = checksums({"gateway": {"config": {"logging": {"level": "debug"}}}})
        self.assertEqual((sidecar[0], gateway[1]), before)
        self.assertNotEqual(sidecar[1], before[1])
        self.assertNotEqual(gateway[0], before[0])

    def test_an_image_with_a_digest_is_referenced_by_it(self):
        digest = "sha256:" + "a" * 64
        objects = render({"sidecar": {"image": {"digest": digest}}})
        self.assertEqual(container(objects, "loopgate")["image"], f"ghcr.io/loopgate/loopgate@{digest}")


class Options(unittest.TestCase):
    def test_discovery_adds_list_and_watch_rights_on_pods_only(self):
        objects = render({"agents": {"discovery": "kubernetes"}})
        self.assertEqual(only(objects, "Role")["rules"], [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}])
        self.assertEqual(only(objects, "RoleBinding")["subjects"][0]["name"], pod(objects)["serviceAccountName"])
        self.assertFalse([o for o in objects if o["kind"].startswith("ClusterRole")])
        self.assertEqual(variable(objects, "LOOPGATE_DISCOVERY"), "kubernetes")

    def test_attested_enrolment_adds_token_reviews(self):
        objects = render({"agents": {"discovery": "kubernetes", "attested": True}})
        rule = {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
        self.assertEqual(only(objects, "ClusterRole")["rules"], [rule])

    def test_without_discovery_there_is_no_rbac_and_no_variable(self):
        for off in "off", False:
            with self.subTest(off=off):
                objects = render({"agents": {"discovery": off}})
                self.assertFalse([o for o in objects if o["apiVersion"].startswith("rbac")])
                self.assertIsNone(variable(objects, "LOOPGATE_DISCOVERY"))

    def test_public_host_names_become_allowed_origins_unless_set(self):
        def origins(**values):
            objects = render({"ingress": {"enabled": True, "hosts": ["a.example"]}, **values})
            text = only(objects, "ConfigMap", "my-loopgate-gateway")["data"]["openclaw.json"]
            return json.loads(text)["gateway"]["controlUi"]["allowedOrigins"]

        self.assertEqual(origins(), ["https://a.example"])
        mine = {"config": {"gateway": {"controlUi": {"allowedOrigins": ["https://b.example"]}}}}
        self.assertEqual(origins(gateway=mine), ["https://b.example"])
        self.assertEqual(origins(gateway=mine, ingress={"enabled": True, "hosts": ["*.example"]}), ["https://b.example"])

    def test_the_url_in_setup_codes_is_the_first_public_host_name_unless_set(self):
        def url(**values):
            text = only(render(values), "ConfigMap", "my-loopgate-gateway")["data"]["openclaw.json"]
            return json.loads(text).get("plugins", {}).get("entries", {}).get("device-pair", {}).get("config", {}).get("publicUrl")

        origins = {"controlUi": {"allowedOrigins": ["https://a.example"]}}
        entries = {"device-pair": {"config": {"publicUrl": "https://b.example:8443"}}}
        self.assertIsNone(url())
        self.assertEqual(url(ingress={"enabled": True, "hosts": ["a.example", "b.example"]}), "https://a.example")
        wild = {"enabled": True, "hosts": ["*.example", "c.example"]}
        self.assertEqual(url(ingress=wild, gateway={"config": {"gateway": origins}}), "https://c.example")
        mine = {"config": {"gateway": origins, "plugins": {"entries": entries}}}
        self.assertEqual(url(ingress=wild, gateway=mine), "https://b.example:8443")

    def test_with_trusted_proxy_sign_in_the_gateway_gets_no_token_and_allows_loopback(self):
        auth = {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "remote-user", "allowLoopback": False}}
        objects = render({"gateway": {"config": {"gateway": {"auth": auth}}}})
        names = [each["name"] for each in container(objects, "gateway")["env"]]
        self.assertNotIn("OPENCLAW_GATEWAY_TOKEN", names)
        self.assertNotIn("my-loopgate-token", json.dumps(objects))
        config = json.loads(only(objects, "ConfigMap", "my-loopgate-gateway")["data"]["openclaw.json"])
        self.assertEqual(config["gateway"]["auth"]["trustedProxy"], {"userHeader": "remote-user", "allowLoopback": True})
        self.assertIn("OPENCLAW_GATEWAY_TOKEN", [each["name"] for each in container(render(), "gateway")["env"]])

    def test_a_cert_manager_certificate_is_what_loopgate_serves(self):
        objects = render({"certificate": {"enabled": True, "issuerRef": {"name": "ca"}}})
        certificate = only(objects, "Certificate")["spec"]
        volume = next(v for v in pod(objects)["volumes"] if v["name"] == "loopgate-tls")
        self.assertEqual(volume["secret"]["secretName"], certificate["secretName"])
        self.assertEqual(variable(objects, "LOOPGATE_TLS_CERT"), "/run/loopgate/tls/tls.crt")
        self.assertIn("my-loopgate.claws.svc", certificate["dnsNames"])

    def test_the_backend_tls_policy_names_a_host_of_the_certificate(self):
        ca = {"group": "", "kind": "ConfigMap", "name": "ca"}
        objects = render({"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "backendTLSPolicy": {"enabled": True, "caCertificateRefs": [ca]}}})
        policy, service = only(objects, "BackendTLSPolicy")["spec"], only(objects, "Service")
        self.assertIn(policy["validation"]["hostname"], listed(objects, "LOOPGATE_TLS_NAME"))
        self.assertEqual(policy["targetRefs"][0]["name"], service["metadata"]["name"])
        self.assertEqual(policy["targetRefs"][0]["sectionName"], service["spec"]["ports"][0]["name"])
        backend = only(objects, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][0]
        self.assertEqual(backend, {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]})

    def test_monitors_find_the_metrics_port(self):
        service = render({"metrics": {"enabled": True, "serviceMonitor": {"enabled": True}}})
        monitor, target = only(service, "ServiceMonitor")["spec"], only(service, "Service", "my-loopgate-metrics")
        self.assertLessEqual(monitor["selector"]["matchLabels"].items(), target["metadata"]["labels"].items())
        self.assertEqual(monitor["endpoints"][0]["port"], target["spec"]["ports"][0]["name"])
        by_pod = render({"metrics": {"enabled": True, "podMonitor": {"enabled": True}}})
        self.assertEqual(only(by_pod, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"], "metrics")
        self.assertIn("metrics", [p["name"] for p in container(by_pod, "loopgate")["ports"]])

    def test_state_may_be_shared_or_a_claim_or_ephemeral(self):
        def mount(objects):
            return next(m for m in container(objects, "loopgate")["volumeMounts"] if m["mountPath"] == "/var/lib/loopgate")

        shared, claim, ephemeral = (render({"state": {"kind": kind}}) for kind in ("shared", "claim", "ephemeral"))
        self.assertEqual((mount(shared)["name"], mount(shared)["subPath"]), ("data", "loopgate"))
        self.assertNotIn("subPath", mount(claim))
        templates = [t["metadata"]["name"] for t in only(claim, "StatefulSet")["spec"]["volumeClaimTemplates"]]
        self.assertEqual(templates, ["data", "loopgate-state"])
        self.assertIn({"name": "loopgate-state", "emptyDir": {"sizeLimit": "16Mi"}}, pod(ephemeral)["volumes"])

    def test_every_mount_has_its_volume(self):
        for name, objects in every():
            for thing in objects:
                if thing["kind"] != "StatefulSet":
                    continue
                templates = thing["spec"].get("volumeClaimTemplates", [])
                spec = thing["spec"]["template"]["spec"]
                volumes = [v["name"] for v in spec["volumes"]] + [t["metadata"]["name"] for t in templates]
                mounts = {m["name"] for c in containers(spec) for m in c.get("volumeMounts", [])}
                with self.subTest(name):
                    self.assertEqual(len(volumes), len(set(volumes)))
                    self.assertEqual(mounts, set(volumes))

    def test_a_release_without_a_gateway_has_only_what_the_sidecar_needs(self):
        self.assertEqual(render({"gateway": {"enabled": False}}), [])
        kinds = sorted(o["kind"] for o in render({"gateway": {"enabled": False}, "agents": {"discovery": "kubernetes"}}))
        self.assertEqual(kinds, ["Role", "RoleBinding", "ServiceAccount"])

    def test_extra_objects_are_templates(self):
        extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}
        self.assertTrue(only(render({"extraObjects": [extra]}), "ConfigMap", "my-x"))

    def test_long_names_are_short_enough_for_the_pods_revision_label(self):
        name = only(render({"fullnameOverride": "x" * 52}), "StatefulSet")["metadata"]["name"]
        self.assertLessEqual(len(name) + len("-0123456789"), 63)
        with self.assertRaises(HelmError):
            render({"fullnameOverride": "x" * 53})
