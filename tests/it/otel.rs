//! The spans of requests, as an OpenTelemetry collector receives them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use loopgate::shutdown::Shutdown;
use tokio::net::TcpListener;

use crate::harness::{AGENT, Harness, OUTSIDER, Protocol};
use loopgate_test_support::raw_http::RawHttp;

const STATED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Requests, each as its head and its body.
type Posted = Vec<(String, Vec<u8>)>;

/// A collector that keeps the requests it receives.
pub struct Collector {
    pub address: std::net::SocketAddr,
    requests: Arc<Mutex<Posted>>,
    tasks: Shutdown,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, tasks, requests) =
            (listener.local_addr().unwrap(), Shutdown::new(), Arc::<Mutex<Posted>>::default());
        let kept = Arc::clone(&requests);
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut wire = RawHttp::new(stream);
                let mut request = wire.read_head().await.unwrap();
                assert!(wire.read_body(&mut request, false).await);
                kept.lock().unwrap().push((request.head, request.body));
                wire.send("HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
                    .await
                    .unwrap();
            }
        });
        Self { address, requests, tasks }
    }

    /// Returns every span that was received.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().unwrap();
        let mut spans = Vec::new();
        for (head, body) in requests.iter() {
            assert!(
                head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("application/x-protobuf"),
                "{head}"
            );
            for resource_spans in submessages(body, 1) {
                let service = key_values(submessages(resource_spans, 1)[0], 1);
                assert!(service.contains(&("service.name".into(), "loopgate".into())), "{service:?}");
                for scope_spans in submessages(resource_spans, 2) {
                    spans.extend(submessages(scope_spans, 2).into_iter().map(Span::read));
                }
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.tasks.begin();
    }
}

#[derive(Debug)]
pub struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    pub attributes: Vec<(String, String)>,
    pub error: Option<String>,
}

impl Span {
    /// The fields of opentelemetry.proto.trace.v1.Span.
    fn read(bytes: &[u8]) -> Self {
        let hex = |number| submessages(bytes, number).concat().iter().map(|byte| format!("{byte:02x}")).collect();
        let text = |number| String::from_utf8(submessages(bytes, number).concat()).unwrap();
        let status = submessages(bytes, 15).concat();
        let error = submessages(&status, 2).first().map(|text| String::from_utf8(text.to_vec()).unwrap());
        Self { trace: hex(1), id: hex(2), parent: hex(4), name: text(5), attributes: key_values(bytes, 9), error }
    }

    /// Returns the label of the request's end; `None` if the request succeeded.
    pub fn error_type(&self) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == "error.type").map(|(_, value)| value.as_str())
    }

    pub fn attribute(&self, name: &str) -> &str {
        let found = self.attributes.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

/// Parses a protocol buffer; returns the number, the bytes and the integer of each field. A field
/// has either bytes or an integer; the other is empty or 0.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8], u64)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let (mut number, mut length) = (0, 0);
        match tag & 7 {
            0 => number = varint(&mut bytes),
            1 => length = 8,
            2 => length = usize::try_from(varint(&mut bytes)).unwrap(),
            5 => length = 4,
            other => panic!("wire type {other}"),
        }
        let (value, rest) = bytes.split_at(length);
        bytes = rest;
        fields.push((tag >> 3, value, number));
    }
    fields
}

/// Returns the bytes of each field with this number.
fn submessages(bytes: &[u8], number: u64) -> Vec<&[u8]> {
    fields(bytes).into_iter().filter(|field| field.0 == number).map(|field| field.1).collect()
}

/// Returns the key-value pairs in the fields with this number. Integers become decimal digits.
fn key_values(bytes: &[u8], number: u64) -> Vec<(String, String)> {
    let pair = |bytes: &[u8]| {
        let key = String::from_utf8(submessages(bytes, 1).concat()).unwrap();
        let value = submessages(bytes, 2).concat();
        let value = fields(&value).into_iter().map(|(kind, text, number)| {
            if kind == 1 { String::from_utf8(text.to_vec()).unwrap() } else { number.to_string() }
        });
        (key, value.collect())
    };
    submessages(bytes, number).into_iter().map(pair).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_child_span_of_its_client() {
    let collector = Collector::start().await;
    let harness = Harness::start_with(|config| {
        config.log.otel_endpoint = Some(format!("http://{}", collector.address).parse().unwrap())
    })
    .await;
    assert_eq!(
        harness.send_request(Protocol::H1, OUTSIDER, "GET /one?token=secret", &[("traceparent", STATED)]).await.0,
        200
    );
    let stated = harness.gateway.requests().pop().unwrap().field("traceparent").unwrap().to_owned();
    assert_eq!(harness.send_request(Protocol::H2, AGENT, "POST /two", &[]).await.0, 200);
    let (status, body) =
        harness.send_request(Protocol::H1, OUTSIDER, "GET /dies", &[("traceparent", "nonsense")]).await;
    assert_eq!(status, 502);
    assert_eq!(
        harness
            .send_request(Protocol::H1, OUTSIDER, "GET /unsampled", &[("traceparent", &format!("{}00", &STATED[..53]))])
            .await
            .0,
        200
    );
    harness.sidecar.stop().await;

    let spans = collector.spans();
    let span_of = |path: &str| {
        spans.iter().find(|span| span.attribute("url.path") == path).unwrap_or_else(|| panic!("no {path} in {spans:?}"))
    };
    let (one, two, dies) = (span_of("/one"), span_of("/two"), span_of("/dies"));
    assert_eq!(spans.len(), 3, "{spans:?}");
    assert_eq!((one.trace.as_str(), one.parent.as_str()), (&STATED[3..35], &STATED[36..52]));
    // The gateway gets the id of loopgate's span, as the parent of its own spans.
    assert_eq!(stated, format!("00-{}-{}-01", one.trace, one.id));
    let attributes = |span: &Span| {
        ["http.request.method", "http.response.status_code", "loopgate.lane", "network.protocol.version"]
            .map(|name| span.attribute(name).to_owned())
    };
    assert_eq!(attributes(one), ["GET", "200", "external", "1.1"]);
    assert_eq!(attributes(two), ["POST", "200", "agent", "2"]);
    assert_eq!((two.name.as_str(), two.parent.as_str(), two.trace.len(), &two.error), ("POST", "", 32, &None));
    assert_eq!((dies.attribute("error.type"), dies.error.as_deref()), ("gateway_broke_off", Some("gateway_broke_off")));
    assert!(body.contains(dies.attribute("loopgate.request_id")), "{body}");
    assert!(
        !collector.requests.lock().unwrap().iter().any(|(_, body)| String::from_utf8_lossy(body).contains("secret"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_collector_delays_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for endpoint in ["http://127.0.0.1:9".to_owned(), format!("http://{}", silent.local_addr().unwrap())] {
        let harness = Harness::start_with(|config| config.log.otel_endpoint = Some(endpoint.parse().unwrap())).await;
        assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
        tokio::time::timeout(Duration::from_secs(15), harness.sidecar.stop())
            .await
            .expect("the sidecar stops without the collector");
    }
}
