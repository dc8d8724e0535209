//! Responses that are always the same. Some of them are malformed.

use std::ops::ControlFlow::{self, Break, Continue};

/// Returns the response for `path`, if it is always the same, and `Break` if the connection ends
/// after it.
pub fn fixed(path: &str) -> Option<(&'static str, ControlFlow<()>)> {
    Some(match path {
        "/trailers" => (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\n\
             X-Sum: 4\r\n\r\n",
            Continue(()),
        ),
        "/unnamed-trailers" => (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 4\r\n\
             Content-Length: 9\r\nTrailer: x\r\n\r\n",
            Continue(()),
        ),
        "/upgrade-required" => (
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Content-Length: 0\r\n\r\n",
            Continue(()),
        ),
        "/renamed" => ("HTTP/1.1 200 Quite Fine\r\nContent-Length: 4\r\n\r\nbody", Continue(())),
        "/nothing" => ("HTTP/1.1 204 No Content\r\n\r\n", Continue(())),
        "/same" => ("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 5\r\n\r\n", Continue(())),
        "/nothing-sized" => ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Continue(())),
        "/sized-twice" => ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", Continue(())),
        "/sized-in-a-list" => ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", Continue(())),
        "/same-sized-wrongly" => ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5, 6\r\n\r\n", Continue(())),
        "/both-lengths" => (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\
             0\r\n\r\n",
            Continue(()),
        ),
        "/hop" => (
            "HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Authenticate: Basic\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
            Break(()),
        ),
        "/to-the-end" => ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end", Break(())),
        // The response lacks `Sec-WebSocket-Accept`, the proof that the server understood the
        // upgrade.
        "/ws-unproven" => {
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", Break(()))
        }
        "/dies" => ("", Break(())),
        "/dies-in-its-head" => ("HTTP/1.1 200 O", Break(())),
        "/dies-halfway" => ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", Break(())),
        "/dies-between-chunks" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Break(())),
        "/nonsense" => ("\x15\x03\x01\x00\x02\x02\x16 this is not HTTP\r\n\r\n", Break(())),
        _ => return None,
    })
}

/// Returns the response for `/coded/STATUS?CODINGS`. It has a `Transfer-Encoding` field for each
/// coding in CODINGS: semicolons separate the codings, and a plus is a blank. If `has_body`, it has
/// a body in chunks.
pub fn coded(path: &str, has_body: bool) -> String {
    let (path, codings) = path.split_once('?').unwrap();
    let status = path.strip_prefix("/coded/").unwrap();
    let lines = codings.split(';').map(|coding| format!("Transfer-Encoding: {}\r\n", coding.replace('+', " ")));
    let body = if has_body { "5\r\nhello\r\n0\r\n\r\n" } else { "" };
    format!("HTTP/1.1 {status} Coded\r\n{}\r\n{body}", lines.collect::<String>())
}
