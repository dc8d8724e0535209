"""The cases. Each is a function of a running proxy that returns what happened, and whether that was right.

They are taken from public reports of what proxies lose or hide.
"""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import raw
from peers import Peer

HERE = Path(__file__).parent
CASES = []
# How often the cases of rare losses are repeated. FIDELITY_TRIES=200 finds the losses of public issue reports.
TRIES = int(os.environ.get("FIDELITY_TRIES", "25"))


class Context:
    """The clients and files that the cases use."""

    def __init__(self, ca: Path, work: Path):
        self.ca = str(ca)
        self.large = work / "large"
        self.large.write_bytes(b"u" * 20_000_000)
        self.small = work / "small"
        self.small.write_bytes(b"s" * 70_000)

    def curl(self, peer: Peer, path: str, *arguments: str, version: str = "--http1.1", timeout: int = 12, stdin: bytes | None = None):
        """Runs curl; returns its exit status, the HTTP status, the length of the body, the seconds it took, and the body."""
        command = ["curl", "--silent", "--noproxy", "*", "--cacert", self.ca, version, "--max-time", str(timeout), "--output", "-",
                   "--write-out", "\n%{http_code} %{size_download} %{time_total}", *arguments, f"https://127.0.0.1:{peer.port}{path}"]
        done = subprocess.run(command, capture_output=True, input=stdin, timeout=timeout + 5)
        body, _, line = done.stdout.rpartition(b"\n")
        status, size, seconds = line.decode().split()
        return done.returncode, int(status), int(float(size)), float(seconds), body

    def node(self, peer: Peer, command: str, path: str) -> dict:
        environment = {**os.environ, "CA": self.ca, "NODE_EXTRA_CA_CERTS": self.ca}
        done = subprocess.run(["node", HERE / "client.mjs", command, f"https://127.0.0.1:{peer.port}{path}"],
                              capture_output=True, text=True, env=environment, timeout=20)
        return json.loads(done.stdout) if done.stdout else {"error": done.stderr[-200:]}

    def exchange(self, peer: Peer, request: str, timeout: float = 5) -> bytes:
        return raw.exchange(peer.port, self.ca, request.encode("latin1"), timeout)


def case(title: str):
    """Adds the decorated function to the cases."""
    def add(function):
        CASES.append((title, function))
        return function
    return add


def echoed(body: bytes) -> dict:
    """The JSON object of the backend's path /echo in a response."""
    try:
        return json.loads(body[body.index(b"{"):body.rindex(b"}") + 1])
    except ValueError:
        return {}


def request_bodies(context: Context, peer: Peer, version: str):
    lost = []
    for method in ("GET", "DELETE", "OPTIONS"):
        # curl reads from a pipe, so it sends chunks over HTTP/1.1, and no Content-Length over HTTP/2.
        _, status, _, _, body = context.curl(peer, "/echo", "-X", method, "-H", "Expect:", "-T", "-", version=version, stdin=b"hello")
        if status != 200 or echoed(body).get("length") != 5:
            lost.append(f"{method}: {status}, {echoed(body).get('length', 'no')} bytes")
    return "; ".join(lost) or "arrives", not lost


@case("GET, DELETE, OPTIONS with a chunked body, h1")
def request_bodies_h1(context, peer):
    return request_bodies(context, peer, "--http1.1")


@case("GET, DELETE, OPTIONS with a body of unstated length, h2")
def request_bodies_h2(context, peer):
    return request_bodies(context, peer, "--http2")


@case("Node fetch: DELETE with a stream")
def node_fetch_delete(context, peer):
    seen = context.node(peer, "fetch", "/echo")
    length = echoed(seen.get("body", "").encode()).get("length")
    return f"{seen.get('status', seen.get('error'))}, {length} bytes", length == 5


def reset_in_response(context, peer, version):
    seen = {"status, bytes, error": 0, "no status": 0, "no byte": 0, "no error": 0}
    for n in range(TRIES):
        code, status, size, _, _ = context.curl(peer, "/cut?chunked" if n % 2 else "/cut", version=version)
        seen["no status" if status == 0 else "no error" if code == 0 else "no byte" if size == 0 else "status, bytes, error"] += 1
    right = seen.pop("status, bytes, error")
    wrong = ", ".join(f"{count} {what}" for what, count in seen.items() if count)
    return wrong or f"visible, {right} of {TRIES}", right == TRIES


@case("gateway resets inside a response, h1")
def reset_in_response_h1(context, peer):
    return reset_in_response(context, peer, "--http1.1")


@case("gateway resets inside a response, h2")
def reset_in_response_h2(context, peer):
    return reset_in_response(context, peer, "--http2")


def early_413(context, peer, version):
    statuses = [context.curl(peer, "/refuse", "-X", "POST", "-H", "Expect:", "-T", str(context.large), version=version)[1] for _ in range(TRIES)]
    lost = sum(status != 413 for status in statuses)
    return f"{lost} of {TRIES} lost" if lost else "413", lost == 0


@case("early 413 during a 20 MB upload, h1")
def early_413_h1(context, peer):
    return early_413(context, peer, "--http1.1")


@case("early 413 during a 20 MB upload, h2")
def early_413_h2(context, peer):
    return early_413(context, peer, "--http2")


def expect_status(context, peer, path, expected_status, version="--http2"):
    _, status, _, seconds, _ = context.curl(peer, path, "-X", "POST", "-H", "Expect: 100-continue", "--expect100-timeout", "8", "-T", str(context.small),
                                            version=version)
    return f"{status} after {seconds:.1f} s", status == expected_status and seconds < 3


@case("Expect: 100-continue over h2, curl")
def expect(context, peer):
    return expect_status(context, peer, "/echo", 200)


@case("Expect: 100-continue over h2, refused with 413")
def expect_refused(context, peer):
    return expect_status(context, peer, "/refuse", 413)


@case("Expect: 100-continue over h2, Java HttpClient")
def expect_java(context, peer):
    if not os.environ.get("JAVA"):
        return "no JDK", None
    done = subprocess.run([os.environ["JAVA"], "-cp", os.environ["JAVA_CLASSES"], "Upload", context.ca, f"https://127.0.0.1:{peer.port}/echo", "h2"],
                          capture_output=True, text=True, timeout=20)
    lines = (done.stdout or done.stderr).strip().splitlines() or ["nothing"]
    return lines[0][-60:], lines[0] == "200 HTTP_2 true"


@case("140 cookies over h2, one field each")
def split_cookies(context, peer):
    seen = context.node(peer, "cookies", "/echo")
    fields = echoed(seen.get("body", "").encode()).get("fields", [])
    sent = [value for name, value in zip(fields[::2], fields[1::2]) if name.lower() == "cookie"]
    whole = len(sent) == 1 and sent[0].count("name") == 140
    return f"{seen.get('status', seen.get('error'))}, {len(sent)} field(s)", whole


def interim_responses(context, peer, command):
    seen = context.node(peer, command, "/hints")
    hinted = 103 in seen.get("interim", []) and any(seen.get("interimFields", []))
    return f"{seen.get('interim', seen.get('error'))} then {seen.get('status')}", hinted and 102 in seen["interim"] and seen["status"] == 200


@case("102 and 103 of the gateway, h1")
def interim_responses_h1(context, peer):
    return interim_responses(context, peer, "hints1")


@case("102 and 103 of the gateway, h2")
def interim_responses_h2(context, peer):
    return interim_responses(context, peer, "hints2")


@case("request trailers not named in Trailer, h1")
def request_trailers(context, peer):
    answer = context.exchange(peer, f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n"
                              "Connection: close, TE\r\n\r\n5\r\nhello\r\n0\r\nX-Checksum: abc\r\n\r\n")
    trailers = echoed(answer).get("trailers")
    return f"{raw.status(answer)}, {trailers}", trailers is not None and [t.lower() for t in trailers] == ["x-checksum", "abc"]


@case("response trailers not named in Trailer, h1")
def response_trailers_h1(context, peer):
    answer = context.exchange(peer, f"GET /trailers HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n").lower()
    passed = answer.rstrip().endswith(b"x-checksum: abc")
    return "passed" if passed else "lost", passed


@case("response trailers not named in Trailer, h2")
def response_trailers_h2(context, peer):
    seen = context.node(peer, "trailers2", "/trailers")
    return str(seen.get("trailers", seen.get("error"))), seen.get("trailers") == "abc"


@case("HTTP/1.0 without Host (HAProxy's option httpchk)")
def http10_without_host(context, peer):
    answer = context.exchange(peer, "OPTIONS / HTTP/1.0\r\n\r\n")
    return str(raw.status(answer)), raw.status(answer) == 200


@case('raw " < > and backtick in a target')
def raw_target(context, peer):
    answer = context.exchange(peer, f'GET /echo?q="<>` HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nConnection: close\r\n\r\n')
    body = answer.partition(b"\r\n\r\n")[2]
    return f"{raw.status(answer)}, {echoed(answer).get('target', f'{len(body)} bytes')}", raw.status(answer) == 200


@case("120 response fields")
def many_response_fields(context, peer):
    _, status, size, _, _ = context.curl(peer, "/fields")
    return str(status), status == 200 and size == 6


@case("response head of 24 KiB")
def large_response_head(context, peer):
    _, status, size, _, _ = context.curl(peer, "/head")
    return str(status), status == 200 and size == 4


@case("gateway resets under an h2 WebSocket (RFC 8441)")
def reset_under_websocket(context, peer):
    seen = context.node(peer, "reset", "/ws-reset")
    if "error" in seen:
        return seen["error"], False
    return f"{seen['status']}, RST_STREAM {seen['code']}" if seen["code"] else f"{seen['status']}, clean end", seen["status"] == 200 and seen["code"] != 0


@case("TRACE")
def trace(context, peer):
    _, status, _, _, body = context.curl(peer, "/echo", "-X", "TRACE", "-H", "Cookie: secret=1")
    return f"{status}{', cookies passed on' if b'secret' in body else ''}", status in (405, 501) and b"secret" not in body


@case("Content-Length of 2^63 and above")
def huge_content_length(context, peer):
    statuses = []
    for length in (2**63, 2**64):
        answer = context.exchange(peer, f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nContent-Length: {length}\r\n\r\n", 3)
        statuses.append(raw.status(answer))
    return str(statuses), all(status in (400, 413) for status in statuses)


@case("pseudo-header fields in h2 trailers")
def pseudo_header_in_trailers(context, peer):
    with raw.connect(peer.port, context.ca, "h2", 3) as connection:
        head = raw.request_head("POST", "/echo", f"127.0.0.1:{peer.port}")
        connection.sendall(raw.PREFACE + raw.frame(raw.SETTINGS, 0, 0) + raw.frame(raw.HEADERS, raw.END_HEADERS, 1, head) + raw.frame(raw.DATA, 0, 1, b"hello")
                           + raw.frame(raw.HEADERS, raw.END_HEADERS | raw.END_STREAM, 1, raw.fields([(":path", "/other")])))
        data = raw.read_until(connection, lambda data: any(kind in (raw.RST_STREAM, raw.GOAWAY) or (kind == raw.DATA and flags & 1)
                                                           for kind, flags, _, _ in raw.frames(data)))
    kinds = [kind for kind, *_ in raw.frames(data)]
    refused = raw.RST_STREAM in kinds or raw.GOAWAY in kinds or b"\x03400" in data
    return "refused" if refused else "accepted", refused


@case("first h2 frame is not SETTINGS")
def missing_settings(context, peer):
    with raw.connect(peer.port, context.ca, "h2", 3) as connection:
        connection.sendall(raw.PREFACE + raw.frame(raw.HEADERS, raw.END_HEADERS | raw.END_STREAM, 1, raw.request_head("GET", "/", f"127.0.0.1:{peer.port}")))
        ended = raw.ends_within(connection, 2)
    return "closed" if ended else "stays open", ended


@case("gateway's response with CL and TE")
def response_with_cl_and_te(context, peer):
    answer = context.exchange(peer, f"GET /lengths HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    if raw.status(answer) == 502:
        return "502", True
    both = b"content-length" in head.lower() and b"transfer-encoding" in head.lower()
    return f"{raw.status(answer)}{', both passed' if both else ''}", not both and b"hello" in body


@case("gateway's response in a coding other than chunked")
def other_transfer_coding(context, peer):
    """A proxy that passes a coded body must also pass the name of the coding."""
    answer = context.exchange(peer, f"GET /coded HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nConnection: close\r\n\r\n")
    status, kept = raw.status(answer), b"gzip" in answer.partition(b"\r\n\r\n")[0].lower()
    return f"{status}{', its name kept' if kept else ''}", status in (500, 501, 502) or kept


@case("304 with a Content-Length")
def not_modified_with_length(context, peer):
    found = []
    for version in ("--http1.1", "--http2"):
        _, status, _, _, body = context.curl(peer, "/not-modified", "--include", version=version)
        found.append(f"{status}{' kept' if b'content-length: 5' in body.lower() else ' dropped'}")
    return " and ".join(found), found[0] == found[1] and found[0].startswith("304")


@case("Upgrade to a protocol other than websocket")
def other_upgrade(context, peer):
    answer = context.exchange(peer, f"GET /echo HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nConnection: Upgrade\r\nUpgrade: other/1\r\n\r\n", 2)
    return f"{raw.status(answer)}", raw.status(answer) not in (101, None)


@case("SIGTERM with WebSocket messages under way")
def drain_websockets(context, peer):
    connections = [raw.websocket(peer.port, context.ca) for _ in range(25)]
    echoes = []

    def listen(connection):
        data = raw.read_until(connection, lambda data: data.count(b"hello") == 2)
        echoes.append(data.count(b"hello"))

    threads = [threading.Thread(target=listen, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for connection in connections:
        connection.sendall(raw.message(b"hello") + raw.message(b"hello"))
    time.sleep(0.03)
    peer.process.send_signal(peer.graceful)
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()
    peer.stop()
    peer.start()
    lost = 50 - sum(echoes)
    return f"{lost} of 50 lost" if lost else "all delivered", lost == 0


@case("SIGTERM with an idle h1 and an idle h2 connection")
def drain_idle_connections(context, peer):
    with raw.connect(peer.port, context.ca) as one, raw.connect(peer.port, context.ca, "h2") as two:
        one.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\n\r\n".encode())
        raw.read_until(one, lambda data: b"ok" in data)
        two.sendall(raw.PREFACE + raw.frame(raw.SETTINGS, 0, 0))
        two.recv(1000)
        time.sleep(0.2)
        start = time.monotonic()
        peer.process.send_signal(peer.graceful)
        try:
            peer.process.wait(8)
            seconds = time.monotonic() - start
        except subprocess.TimeoutExpired:
            seconds = None
    peer.stop()
    peer.start()
    return f"{seconds:.1f} s" if seconds is not None else "more than 8 s", seconds is not None and seconds < 1.5
