"""Raw TLS connections, and the parts of HTTP/2 and WebSockets that send frames which no library would send."""

import socket
import ssl
import struct
import time


def connect(port: int, ca: str, protocol: str = "http/1.1", timeout: float = 10) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols([protocol])
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout), server_hostname="127.0.0.1")
    connection.settimeout(timeout)
    return connection


def read_until(connection, done) -> bytes:
    """Reads until `done` returns true for the data so far, the peer closes, or the connection times out."""
    data = b""
    while not done(data):
        try:
            piece = connection.recv(65536)
        except (OSError, ssl.SSLError):
            break
        if not piece:
            break
        data += piece
    return data


def exchange(port: int, ca: str, request: bytes, timeout: float = 5) -> bytes:
    """Sends bytes on a new HTTP/1.1 connection, and reads until its end or until nothing arrives for `timeout` seconds."""
    with connect(port, ca, timeout=timeout) as connection:
        connection.sendall(request)
        return read_until(connection, lambda data: False)


def status(response: bytes) -> int | None:
    words = response.split(b" ", 2)
    return int(words[1]) if response.startswith(b"HTTP/1.") and len(words) > 1 and words[1][:3].isdigit() else None


# -- HTTP/2 --

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def fields(pairs: list[tuple[str, str]]) -> bytes:
    """An HPACK block of literals without indexing and Huffman codes (RFC 7541 section 6.2.2). Names and values are below 127 bytes."""
    return b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in pairs)


def request_head(method: str, path: str, authority: str, more: list[tuple[str, str]] = []) -> bytes:
    return fields([(":method", method), (":scheme", "https"), (":authority", authority), (":path", path), *more])


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The complete frames at the beginning of `data`: type, flags, stream and payload."""
    found = []
    while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
        length = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:9 + length]))
        data = data[9 + length:]
    return found


def ends_within(connection, seconds: float) -> bool:
    """Whether the peer closes the connection or sends GOAWAY within this time."""
    deadline, data = time.monotonic() + seconds, b""
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            piece = connection.recv(65536)
        except TimeoutError:
            return False
        except (OSError, ssl.SSLError):
            return True
        data += piece
        if not piece or any(kind == GOAWAY for kind, *_ in frames(data)):
            return True
    return False


# -- WebSockets --

def websocket(port: int, ca: str, path: str = "/ws"):
    connection = connect(port, ca)
    head = (f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bG9vcGdhdGUgdGVzdCAxNg==\r\n\r\n")
    connection.sendall(head.encode())
    answer = read_until(connection, lambda data: b"\r\n\r\n" in data)
    assert status(answer) == 101, answer
    return connection


def message(text: bytes) -> bytes:
    """A masked text frame."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text
