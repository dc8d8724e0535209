"""The script of `helm test`, with fake gateways that are right and wrong."""

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest
from contextlib import contextmanager

from chart import CHART

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
CHALLENGE = b'{"type":"event","event":"connect.challenge"}'
GREETING = UPGRADED + b"\x81" + bytes([len(CHALLENGE)]) + CHALLENGE


def certificate(directory: str) -> ssl.SSLContext:
    """A server's TLS context with a new self-signed certificate."""
    pem = os.path.join(directory, "server.pem")
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", pem, "-out", pem + ".crt"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem + ".crt", pem)
    return context


def response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@contextmanager
def server(answer: bytes, tls: ssl.SSLContext | None, port: int = 0, paths: dict[bytes, bytes] = {}):
    """Runs a server on loopback that answers requests for `paths` with theirs and all others with `answer`; yields its port."""
    listener = socket.create_server(("127.0.0.1", port))

    def serve(connection):
        try:
            with tls.wrap_socket(connection, server_side=True) if tls else connection as stream:
                received = b""
                while b"\r\n\r\n" not in received:
                    more = stream.recv(65536)
                    if not more:
                        return  # the client only tested whether the port is open
                    received += more
                stream.sendall(paths.get(received.split(b" ")[1], answer))
                stream.recv(1)
        except OSError:
            pass  # plaintext on a TLS port, or the client has closed the connection

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def outcome(port: int, lane: str = "") -> tuple[int, str]:
    """Runs the script, and returns its exit status and output."""
    environment = {"PATH": os.environ["PATH"], "GATEWAY_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "LANE": lane, "LANE_SECONDS": "1"}
    script = (CHART / "files" / "connection-test.js").read_text()
    done = subprocess.run(["node", "-e", script], env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@unittest.skipUnless(shutil.which("node") and shutil.which("openssl"), "needs node and openssl")
class Connection(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.tls = certificate(directory.name)

    def test_a_gateway_that_sends_its_challenge_over_tls_passes(self):
        with server(GREETING, self.tls) as port:
            self.assertEqual(outcome(port), (0, "ok: TLS only, and the gateway answers behind it\n"))

    def test_an_agents_pod_passes_if_the_gateway_sees_it_as_local(self):
        canvas = b"/__openclaw__/canvas/"
        for name, paths in {
            "2026.9": {b"/startupz": response(200, b'{"ok":true,"version":"2026.9.6"}')},
            "2026.2": {b"/startupz": response(200, b"<html>"), canvas: response(200, b"<html>")},
        }.items():
            with self.subTest(name), server(GREETING, self.tls, paths=paths) as port:
                self.assertEqual(outcome(port, "agent"), (0, "ok: TLS only, and the gateway answers behind it on the agent lane\n"))

    def test_an_agents_pod_fails_if_the_gateway_sees_it_as_remote(self):
        with server(GREETING, self.tls, paths={b"/startupz": response(200, b'{"ok":true}')}) as port:
            self.assertEqual(outcome(port, "agent"), (1, "FAILED: this pod is on the external lane, and should be on the agent lane\n"))

    def test_a_port_that_answers_plaintext_fails(self):
        with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None) as port:
            self.assertEqual(outcome(port), (1, "FAILED: the port answers plaintext HTTP\n"))

    def test_a_gateway_that_refuses_the_upgrade_fails_with_its_status(self):
        with server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", self.tls) as port:
            self.assertEqual(outcome(port), (1, "FAILED: the WebSocket upgrade got HTTP 403\n"))

    def test_a_port_where_nothing_listens_fails(self):
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        status, text = outcome(port)
        self.assertEqual(status, 1)
        self.assertIn("ECONNREFUSED", text)
