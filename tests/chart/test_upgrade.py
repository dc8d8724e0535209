"""The generated token, with a fake API server for Helm's function `lookup`."""

import base64
import json
import threading
import unittest
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from chart import NEWEST, only, render

CORE = {
    "kind": "APIResourceList",
    "groupVersion": "v1",
    "resources": [{"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get"]}],
}


@contextmanager
def api_server(secrets: dict[str, dict]):
    """Runs an API server on loopback that has these Secrets; yields its address and the list of requested paths."""
    requested_paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            requested_paths.append(path)
            answers = {
                "/version": {"major": "1", "minor": NEWEST.split(".")[1], "gitVersion": f"v{NEWEST}"},
                "/api": {"kind": "APIVersions", "versions": ["v1"]},
                "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
                "/api/v1": CORE,
            }
            answer = answers.get(path) or secrets.get(path)
            body = json.dumps(answer or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested_paths
    finally:
        server.shutdown()
        server.server_close()


def token(objects: list[dict]) -> str:
    """The token in the rendered Secret."""
    return base64.b64decode(only(objects, "Secret", "my-loopgate-token")["data"]["token"]).decode()


def secret(text: str) -> dict:
    """The Secret with this token, in the API server's form."""
    data = {"token": base64.b64encode(text.encode()).decode()}
    return {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "my-loopgate-token", "namespace": "claws"}, "data": data}


PATH = "/api/v1/namespaces/claws/secrets/my-loopgate-token"


class Token(unittest.TestCase):
    def test_an_upgrade_keeps_the_existing_token(self):
        with api_server({PATH: secret("from the first install")}) as (address, requested_paths):
            upgraded = render(extra=("--dry-run=server", "--is-upgrade", "--kube-apiserver", address))
        self.assertIn(PATH, requested_paths)
        self.assertEqual(token(upgraded), "from the first install")

    def test_a_first_install_makes_a_long_random_token(self):
        with api_server({}) as (address, requested_paths):
            first, second = (token(render(extra=("--dry-run=server", "--kube-apiserver", address))) for _ in range(2))
        self.assertIn(PATH, requested_paths)
        self.assertRegex(first, "^[A-Za-z0-9]{48}$")
        self.assertNotEqual(first, second)

    def test_uninstalling_keeps_the_token(self):
        annotations = only(render(), "Secret")["metadata"]["annotations"]
        self.assertEqual(annotations["helm.sh/resource-policy"], "keep")

    def test_an_existing_secret_is_used_and_none_is_made(self):
        objects = render({"gateway": {"token": {"existingSecret": "mine", "key": "TOKEN"}}})
        self.assertFalse([o for o in objects if o["kind"] == "Secret"])
        self.assertIn('{"name": "mine", "key": "TOKEN"}', json.dumps(objects))
