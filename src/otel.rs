//! Sends a span for each request to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! The OpenTelemetry SDK collects spans and sends them in batches on a separate thread. The SDK
//! drops spans that can't be sent in time. The SDK's environment variables apply
//! (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tracing::debug;

use crate::http_client::send_request;
use crate::labels;
use crate::trace::{Recorder, Span};

/// The default path of OTLP traces, for an endpoint without a path.
const DEFAULT_PATH: &str = "/v1/traces";
/// The timeout of sending one batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a collector's response, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// Why spans can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The SDK rejects the endpoint.
    #[error("log.otel_endpoint can't be used")]
    Endpoint(#[from] ExporterBuildError),
}

/// Sends spans to a collector until it is stopped.
pub struct Exporter {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// Returns an exporter that sends to `endpoint`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// The SDK rejects the endpoint.
    pub fn new(endpoint: &Uri) -> Result<Self, Error> {
        let url = if endpoint.path() == "/" {
            format!("{}{DEFAULT_PATH}", endpoint.to_string().trim_end_matches('/'))
        } else {
            endpoint.to_string()
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(RuntimeHttpClient(Handle::current()))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(BATCH_TIMEOUT)
            .build()?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("loopgate");
        }
        processor.set_resource(
            &resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build(),
        );
        Ok(Self {
            processor,
            scope: InstrumentationScope::builder("loopgate").with_version(env!("CARGO_PKG_VERSION")).build(),
        })
    }

    /// Sends the remaining spans, and stops. Waits for at most [`BATCH_TIMEOUT`].
    pub async fn stop(self: Arc<Self>) {
        let ended = tokio::task::spawn_blocking(move || self.processor.shutdown_with_timeout(BATCH_TIMEOUT)).await;
        if let Ok(Err(error)) = ended {
            debug!(%error, "the last spans were not sent");
        }
    }
}

impl Recorder for Exporter {
    fn record(&self, span: &Span<'_>) {
        let context = &span.trace.forwarded;
        // The client that began the trace decides by the sampled flag whether it is recorded.
        if !context.is_sampled() {
            return;
        }
        let trace = TraceId::from_hex(context.trace_id()).unwrap_or(TraceId::INVALID);
        let span_id = |hex: &str| SpanId::from_hex(hex).unwrap_or(SpanId::INVALID);
        let mut attributes = vec![
            KeyValue::new("http.request.method", span.method.to_owned()),
            KeyValue::new("url.path", span.path.to_owned()),
            KeyValue::new("url.scheme", if span.is_encrypted { "https" } else { "http" }),
            KeyValue::new("network.protocol.name", "http"),
            KeyValue::new("network.protocol.version", if span.protocol == labels::Protocol::H2 { "2" } else { "1.1" }),
            KeyValue::new("network.peer.address", span.peer.to_string()),
            KeyValue::new("loopgate.lane", span.lane.label()),
        ];
        attributes.extend(span.request_id.map(|id| KeyValue::new("loopgate.request_id", id.to_owned())));
        if span.status > 0 {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(span.status)));
        }
        attributes.extend(span.error.map(|error| KeyValue::new("error.type", error)));
        // By the semantic conventions for servers a 4xx status is not an error of the span. A
        // response that broke off after its head is an error, whatever its status, and so is a 5xx
        // of the gateway.
        let status = match span.error {
            Some(error) if !(400..500).contains(&span.status) => Status::error(error),
            None if span.status >= 500 => Status::error(""),
            _ => Status::Unset,
        };
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(
                trace,
                span_id(context.span_id()),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: span.trace.parent.as_ref().map_or(SpanId::INVALID, |parent| span_id(parent.span_id())),
            parent_span_is_remote: span.trace.parent.is_some(),
            span_kind: SpanKind::Server,
            name: span_name(span.method).into(),
            start_time: span.started_at,
            end_time: span.started_at + span.time_to_head,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.scope.clone(),
        });
    }
}

/// Returns the name of the span for a request: the method, or `HTTP` for an unknown one, since the
/// semantic conventions require a bounded set.
fn span_name(method: &str) -> &'static str {
    const KNOWN: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("HTTP")
}

/// An HTTP client for the SDK, which sends the requests of the SDK's thread on the sidecar's
/// runtime.
#[derive(Debug)]
struct RuntimeHttpClient(Handle);

impl HttpClient for RuntimeHttpClient {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        // This task is not spawned by `Shutdown`, since the SDK waits for it, and `Exporter::stop`
        // waits for the SDK.
        let sent = self.0.spawn(async { tokio::time::timeout(BATCH_TIMEOUT, send(request)).await });
        Box::pin(async move { sent.await?? })
    }
}

/// Sends `request` on a new connection without TLS, and reads the response.
/// Fails if the response is larger than [`MAX_RESPONSE`].
async fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("there is no host in the endpoint")?.clone();
    parts.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    parts.uri = Uri::from(parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static(DEFAULT_PATH)));
    let stream =
        TcpStream::connect((authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80))).await?;
    let (parts, body) = send_request(stream, Request::from_parts(parts, Full::new(body))).await?.into_parts();
    Ok(Response::from_parts(parts, Limited::new(body, MAX_RESPONSE).collect().await?.to_bytes()))
}
