//! Properties that hold for every input. Each public function checks one input: the fuzz targets in
//! `fuzz/` call it with the bytes that cargo-fuzz finds, and the property tests below with random
//! ones.

mod h2_streams;
mod responses;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::{Config, PathRule};
use crate::discovery::View;
use crate::enrolment_protocol::{self, Challenge, Enrolled, JsonLines, ProofShown, Reply};
use crate::labels::LaneKind;
use crate::lane::{
    Evidence, GatewayHead, Lane, ProxyHeader, RequestRules, Target, decide_lane, scrub_request_trailers,
};
use crate::listener::proxy_protocol::{parse_v1, parse_v2};
use crate::proxy::{GuardedInput, H1RequestGuard, INVALID_END};
pub use h2_streams::fuzz_h2_streams;
pub use responses::fuzz_responses;

const PROXY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const AGENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 9);

/// The configuration of all targets, and its rules for requests. They are created once, because
/// that takes longer than one run of a target.
static RULES: LazyLock<(Config, RequestRules)> = LazyLock::new(|| {
    let config = fuzz_config();
    let rules = RequestRules::new(&config);
    (config, rules)
});

/// Returns a configuration with a trusted proxy, an agent, an identity header and a path rule.
fn fuzz_config() -> Config {
    let mut config = Config::default();
    config.external.trusted_proxies = vec![IpAddr::V4(PROXY).into()];
    config.agents.cidrs = vec![IpAddr::V4(AGENT).into()];
    config.external.identity_headers = vec![HeaderName::from_static("x-forwarded-user")];
    config.external.paths = vec![PathRule::deny("/private")];
    config
}

/// Builds the head of a request to the gateway from `data`, and asserts that nothing in it makes
/// the client local or bypasses a path rule.
///
/// The first byte of `data` selects the peer and the version of HTTP. The first line after it is
/// the path, and each further line a field.
pub fn fuzz_head(data: &[u8]) {
    let Some((&kind, text)) = data.split_first() else { return };
    let (config, rules) = &*RULES;
    let peer = [STRANGER, PROXY, AGENT][usize::from(kind % 3)];
    let evidence = Evidence { peer: peer.into(), proxy_header: ProxyHeader::Local, certificate: None };
    let lane = decide_lane(&evidence, &View::default(), rules.policy(), 0).expect("no client is denied");
    assert_eq!(matches!(lane, Lane::Agent(_)), peer == AGENT);

    let mut lines = text.split(|byte| *byte == b'\n');
    let path = lines.next().unwrap_or_default();
    let Ok(mut request) = Request::builder().method(Method::GET).uri(path).body(()) else { return };
    if kind & 0x80 != 0 {
        *request.version_mut() = Version::HTTP_2;
    }
    for line in lines {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value)
            && request.headers_mut().try_append(name, value).is_err()
        {
            return;
        }
    }
    let sent = request.headers().clone();
    let path = request.uri().path().to_owned();
    let (parts, ()) = request.into_parts();
    let Ok(head) =
        GatewayHead::new(parts, &lane, rules, &Target::for_gateway(config.gateway.address), None, &BTreeSet::new())
    else {
        return;
    };
    let (on, source) = (head.lane(), head.route().source);
    let request = head.into_request(());
    let headers = request.headers();
    let count = |name: &str| {
        headers.keys().filter(|key| same_name(key, name)).map(|key| headers.get_all(key).iter().count()).sum::<usize>()
    };
    for name in ["forwarded", "x-real-ip", "via", "x-openclaw-scopes", "tailscale-user-login"] {
        assert_eq!(count(name), 0, "{name} {headers:?}");
    }
    assert_eq!(count("host"), 1);
    if on == LaneKind::Agent {
        assert!(peer == AGENT && !sent.contains_key("origin") && !sent.contains_key("sec-fetch-site"));
        for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-user"] {
            assert_eq!(count(name), 0, "{name} {headers:?}");
        }
        assert_eq!(headers["host"], config.gateway.address.to_string());
        return;
    }
    assert_eq!(source, config.gateway.external_source);
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"] {
        assert_eq!(count(name), 1, "{name} {headers:?}");
    }
    let client: IpAddr = headers["x-forwarded-for"].to_str().unwrap().parse().unwrap();
    let client = client.to_canonical();
    assert!(!client.is_loopback() && !client.is_unspecified());
    if peer != PROXY {
        assert_eq!(count("x-forwarded-user"), 0);
        assert_eq!(client, IpAddr::V4(peer));
    }
    assert!(!reads_as_private(&path), "{path}");
}

/// Returns whether `key` is `name` to a server that reads `_` and `.` in names as `-`.
fn same_name(key: &HeaderName, name: &str) -> bool {
    key.as_str().replace(['_', '.'], "-") == name
}

/// Returns whether the gateway could read `path` as a path below `/private`, if it decodes
/// percent-encoding up to three times, ignores case, and resolves dot segments and backslashes.
fn reads_as_private(path: &str) -> bool {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..3 {
        bytes = percent_decode(&bytes).collect();
    }
    let text = String::from_utf8_lossy(&bytes).to_lowercase().replace('\\', "/");
    let mut segments = Vec::new();
    for segment in text.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment.to_owned()),
        }
    }
    segments.first().is_some_and(|segment| segment == "private")
}

/// Scrubs trailers, and asserts that no field that a request head may not have is left. Each line
/// of `data` is the name of a trailer.
pub fn fuzz_trailers(data: &[u8]) {
    let mut trailers = http::HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(name) = HeaderName::from_bytes(line) {
            let _ = trailers.try_append(name, HeaderValue::from_static("1"));
        }
    }
    scrub_request_trailers(&mut trailers, &RULES.1);
    for name in [
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-user",
        "x-real-ip",
        "via",
        "host",
        "authorization",
        "content-length",
    ] {
        assert!(!trailers.keys().any(|key| same_name(key, name)), "{name}");
    }
}

/// Parses `data` as a PROXY header of either version. Asserts that it is not valid as both, and
/// that the client of a version 1 header is the address in its text.
pub fn fuzz_proxy_header(data: &[u8]) {
    let v1 = parse_v1(data);
    let v2 = parse_v2(data);
    assert!(v1.is_err() || v2.is_err(), "a header is valid as version 1 and as version 2");
    if let Ok(ProxyHeader::Client(client)) = v1 {
        let text = std::str::from_utf8(data).expect("a header of version 1 is text").to_owned();
        let stated = text.split(' ').nth(2).and_then(|ip| ip.parse::<IpAddr>().ok()).expect("it states an address");
        assert_eq!(client, stated.to_canonical());
    }
}

/// Parses `data` as each message of the enrolment protocol, and as a certificate signing request.
/// Nothing may panic.
pub fn fuzz_enrolment(data: &[u8]) {
    let stream = || tokio::io::join(data, tokio::io::sink());
    let request = JsonLines::new(stream())
        .receive::<enrolment_protocol::EnrolmentRequest>()
        .now_or_never()
        .expect("the input is complete");
    if let Ok(request) = request {
        let _ = crate::enrolment::parse_csr(&request.csr);
    }
    let _ = JsonLines::new(stream()).receive::<ProofShown>().now_or_never().expect("the input is complete");
    let _ = JsonLines::new(stream()).receive::<Reply<Challenge>>().now_or_never().expect("the input is complete");
    let _ = JsonLines::new(stream()).receive::<Reply<Enrolled>>().now_or_never().expect("the input is complete");
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = crate::enrolment::parse_csr(text);
    }
}

/// Returns how many bytes of `input` are in `output`, in which `"`, `<`, `>` and backticks may be
/// percent-encoded. Asserts that nothing else is changed.
fn count_passed(input: &[u8], mut output: &[u8]) -> usize {
    let mut count = 0;
    while !output.is_empty() {
        let byte = input[count];
        let is_encoded = output[0] != byte;
        assert!(!is_encoded || matches!(byte, b'"' | b'<' | b'>' | b'`'));
        let expected = if is_encoded { format!("%{byte:02X}").into_bytes() } else { vec![byte] };
        output = output.strip_prefix(&expected[..]).expect("the byte or its encoding");
        count += 1;
    }
    count
}

/// Passes the bytes of an HTTP/1.1 connection through [`H1RequestGuard`] at once, and again in
/// pieces whose size is the first byte. Asserts that the results are equal, and that the guard
/// changes only bytes that it encodes, and the line feed of a head that it refuses.
pub fn fuzz_h1_request_guard(data: &[u8]) {
    let Some((&size, bytes)) = data.split_first() else { return };
    // Returns what hyper gets, and whether a head was refused.
    let guard_in_pieces = |size: usize| {
        let (mut guard, mut output) = (H1RequestGuard::default(), Vec::new());
        for piece in bytes.chunks(size) {
            match guard.guard_input(piece) {
                GuardedInput::Unchanged => output.extend(piece),
                GuardedInput::Encoded(bytes) => output.extend(bytes),
                GuardedInput::Refused(bytes) => {
                    output.extend(bytes);
                    return (output, true);
                }
            }
        }
        (output, false)
    };
    let (output, is_refused) = guard_in_pieces(bytes.len().max(1));
    if is_refused {
        let before = output.strip_suffix(INVALID_END).expect("an invalid end");
        assert_eq!(bytes[count_passed(bytes, before)], b'\n');
    } else {
        assert_eq!(count_passed(bytes, &output), bytes.len());
    }
    assert_eq!(guard_in_pieces(usize::from(size).max(1)), (output, is_refused));
}

/// A client's connection from which hyper reads one byte at a time, after [`H1RequestGuard`].
struct Trickle<'a> {
    rest: &'a [u8],
    guard: H1RequestGuard,
    /// The bytes in place of the last one that hyper has not read yet.
    unread: Vec<u8>,
    /// Whether the guard saw the end of a head whose request hyper has not passed on yet.
    head_ended: Rc<Cell<bool>>,
}

impl AsyncRead for Trickle<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let byte = self.unread.remove(0);
            buf.put_slice(&[byte]);
            return Poll::Ready(Ok(()));
        }
        let Some((first, rest)) = self.rest.split_first() else { return Poll::Ready(Ok(())) };
        let before = self.guard.is_in_head();
        let guarded = self.guard.guard_input(&[*first]);
        assert!(!self.head_ended.get(), "a head ended that hyper did not see");
        self.head_ended.set(before && !self.guard.is_in_head() && !matches!(guarded, GuardedInput::Refused(_)));
        self.unread = match guarded {
            GuardedInput::Unchanged => vec![*first],
            GuardedInput::Encoded(bytes) | GuardedInput::Refused(bytes) => bytes,
        };
        let byte = self.unread.remove(0);
        buf.put_slice(&[byte]);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Trickle<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Serves an HTTP/1.1 connection with hyper behind [`H1RequestGuard`]. Asserts that both see the
/// end of each head at the same byte, and that the guard encodes the characters in a target that
/// hyper would refuse.
pub fn fuzz_requests(data: &[u8]) {
    let head_ended = Rc::<Cell<bool>>::default();
    let text = String::from_utf8_lossy(data).to_ascii_lowercase();
    let may_tunnel = text.contains("upgrade") || text.contains("connect");
    let trickle = Trickle {
        rest: data,
        guard: H1RequestGuard::default(),
        unread: Vec::new(),
        head_ended: Rc::clone(&head_ended),
    };
    let connection = http1::Builder::new().header_read_timeout(None).serve_connection(
        TokioIo::new(trickle),
        service_fn(|request: Request<Incoming>| {
            assert!(head_ended.replace(false), "a request whose head was not seen: {request:?}");
            let target = request.uri().to_string();
            assert!(!target.contains(['"', '<', '>', '`']) || may_tunnel, "not encoded: {target}");
            async {
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        }),
    );
    let mut connection = pin!(connection);
    // Reads and writes never block, so hyper returns `Pending` only to let other tasks run.
    while connection.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {}
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Generates inputs: one random byte, and then pieces of which 3 of 5 are one of `words`.
    fn bytes(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            3 => proptest::sample::select(words).prop_map(|word| word.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 0..8),
            1 => "[ -~]{0,12}".prop_map(String::into_bytes),
        ];
        (any::<u8>(), vec(piece, 0..24)).prop_map(|(first, pieces)| [vec![first], pieces.concat()].concat())
    }

    const HEAD: &[&str] = &[
        "/",
        "/private",
        "%2e",
        "%2F",
        "..",
        "/./",
        "%70",
        "%25",
        ";",
        "\\",
        "?",
        "\n",
        "\nhost:a",
        "\norigin:https://a",
        "\nx-forwarded-for:",
        "\nx_forwarded_for:127.0.0.1",
        "127.0.0.1",
        ", ",
        "10.0.0.5",
        "[::1]:80",
        "::ffff:127.0.0.1",
        "\nvia:a",
        "\nx-forwarded-user:root",
        "\nconnection:",
        "x-forwarded-for",
        "\nforwarded:for=127.0.0.1",
        "\nx-real-ip:127.0.0.1",
    ];
    const TRAILERS: &[&str] =
        &["\n", "x-forwarded-for", "host", "x_", "forwarded", "via", "authorization", "content-length", "_", "."];
    const PROXY_HEADER: &[&str] = &[
        "PROXY ",
        "TCP4 ",
        "TCP6 ",
        "UNKNOWN",
        "127.0.0.1",
        "2001:db8::1",
        " ",
        "443",
        "\r\n",
        "\r\n\r\n\0\r\nQUIT\n",
        "\x21",
        "\x11",
        "\0\x0c",
    ];
    const ENROLMENT: &[&str] = &[
        "{\"csr\":\"",
        "\"}",
        "\n",
        "{\"shown\":\"file\",\"path\":\"",
        "-----BEGIN CERTIFICATE REQUEST-----\\n",
        "MIIB",
        "{\"nonce\":\"",
        "[",
        "\\u0000",
    ];
    const REQUESTS: &[&str] = &[
        "POST / HTTP/1.1\r\n",
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        "\r\n",
        "\n",
        "0",
        "5",
        "ffffffffffffffff",
        ";",
        ":",
    ];

    const RESPONSES: &[&str] = &[
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 103 Early\r\n",
        "HTTP/1.1 204 No\r\n",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1 101 A\r\n\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 5, 05\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: gzip\r\n",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "0\r\n",
        "5\r\nhello\r\n",
        "hello",
        "5;a=b\r\n",
        "0\r\n\r\n",
        "0\r\nX-Sum: 5\r\n\r\n",
        "X: 1\n",
        "ffffffffffffffff",
    ];

    /// Generates what a gateway sends: with a high chance, the head of a response first.
    fn response() -> impl Strategy<Value = Vec<u8>> {
        let begins = &[
            "",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 103 A\r\n\r\nHTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n",
        ];
        (proptest::sample::select(&begins[..]), bytes(RESPONSES))
            .prop_map(|(begin, data)| [&data[..1], begin.as_bytes(), &data[1..]].concat())
    }

    proptest! {
        #[test]
        fn responses_as_hyper_reads_them(data in response()) {
            fuzz_responses(&data);
        }

        #[test]
        fn heads(mut data in bytes(HEAD), at_root: bool) {
            if at_root {
                data.splice(1..1, *b"/");
            }
            fuzz_head(&data);
        }

        #[test]
        fn trailer_sections(data in bytes(TRAILERS)) {
            fuzz_trailers(&data);
        }

        #[test]
        fn proxy_headers(data in bytes(PROXY_HEADER)) {
            fuzz_proxy_header(&data[1..]);
        }

        #[test]
        fn enrolments(data in bytes(ENROLMENT)) {
            fuzz_enrolment(&data[1..]);
        }

        #[test]
        fn h1_request_guards(data in bytes(REQUESTS)) {
            fuzz_h1_request_guard(&data);
        }

        #[test]
        fn requests_as_hyper_reads_them(data in bytes(REQUESTS)) {
            fuzz_requests(&data[1..]);
        }
    }
}
