//! A client of the Kubernetes API: `list` and `watch` of labelled pods in one namespace, and `create` of token reviews.
//!
//! It is made of hyper and rustls, which loopgate needs anyway. The `kube` client would bring some
//! sixty crates for these three requests, and hide what has to be reported: which rule is missing,
//! and that a list has grown too old. Each request has a connection of its own and reads the
//! credentials again, so a restarted server or a rotated token needs no handling.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::error::{Error, Rule};
use super::object::{Event, List, Status, TokenOwner, TokenReview, TokenReviewRequest};
use crate::config;
use crate::discovery::agent_labels::POD_AGENT;
use crate::discovery::body::{Lines, read_all};
use crate::discovery::text::{one_line, query_value};
use crate::http_client::{ResponseBody, send_request};
use crate::secret::Secret;

/// How long a connection may take, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a whole answer may take, and the head of a watch.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the API server is asked to keep a watch open. It sends bookmarks meanwhile, about one a minute.
const WATCH: Duration = Duration::from_secs(290);
/// After how long a silent connection is probed by the kernel, and how often.
const PROBE: Duration = Duration::from_secs(5);
/// Pods in one answer.
const PAGE: u32 = 250;
/// The longest answer: more than a page of pods, each of which etcd limits to 1.5 MiB, and most of which have some KiB.
const MAX_ANSWER: usize = 64 << 20;
/// The longest event.
const MAX_LINE: usize = 4 << 20;

/// A client of one API server.
#[derive(Clone, Debug)]
pub struct Api {
    /// `host:port`, if it is configured.
    server: Option<String>,
    credentials: PathBuf,
    audience: String,
}

/// The events of a watch, as they arrive.
pub type Events = BoxStream<'static, Result<Event, Error>>;

impl Api {
    /// Returns a client of the API server that the configuration names, or else the variables that
    /// Kubernetes sets in every pod.
    pub fn new(config: &config::Kubernetes) -> Self {
        let server = config.api.clone().or_else(|| {
            let host = std::env::var("KUBERNETES_SERVICE_HOST").ok().filter(|host| !host.is_empty())?;
            let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().filter(|port| !port.is_empty())?;
            Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
        });
        Self { server, credentials: config.credentials.clone(), audience: config.audience.clone() }
    }

    /// Returns the URL of the API server.
    pub fn name(&self) -> String {
        self.server.as_ref().map_or_else(|| "the API server".into(), |server| format!("https://{server}"))
    }

    /// Lists one page of the labelled pods: the first, or the one that the token `after` continues with.
    ///
    /// No resource version is named, so the answer comes from etcd: a cache of the API server's
    /// could list pods that are gone.
    pub(super) async fn list(&self, after: Option<&str>) -> Result<List, Error> {
        self.page(after, PAGE).await
    }

    async fn page(&self, after: Option<&str>, limit: u32) -> Result<List, Error> {
        let mut query = format!("{}&limit={limit}", selector());
        if let Some(after) = after {
            query = format!("{query}&continue={}", query_value(after));
        }
        self.answer(Rule::List, Method::GET, &self.pods(&query).await?, Bytes::new()).await
    }

    /// Returns the uids of all pods with the label, whether they run or not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn uids(&self) -> Result<BTreeSet<String>, Error> {
        let mut uids = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.list(after.as_deref()).await?;
            uids.extend(page.items.unwrap_or_default().into_iter().map(|pod| pod.metadata.uid));
            if page.metadata.r#continue.is_empty() {
                return Ok(uids);
            }
            after = Some(page.metadata.r#continue);
        }
    }

    /// Watches labelled pods from `version` on.
    pub(super) async fn watch(&self, version: &str) -> Result<Events, Error> {
        let response = self.watching(version, WATCH).await?;
        Ok(events(response.into_body()))
    }

    async fn watching(&self, version: &str, life: Duration) -> Result<Response<ResponseBody>, Error> {
        let (selector, version, life) = (selector(), query_value(version), life.as_secs());
        let query =
            format!("{selector}&watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={life}");
        let path = self.pods(&query).await?;
        let response = timeout(ANSWER, self.send(Rule::Watch, Method::GET, &path, Bytes::new())).await;
        response.map_err(|_| Error::Timeout(Rule::Watch.doing()))?
    }

    /// Has the API server review `token`; `None` where it is refused, or is bound to no pod, or is
    /// for another audience.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn review(&self, token: &Secret) -> Result<Option<TokenOwner>, Error> {
        const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
        // Not through a `Value`, which would leave copies of the token in memory.
        let spec = TokenReviewRequest::new(token, &self.audience);
        let body = Zeroizing::new(serde_json::to_vec(&spec).map_err(|_| Error::Malformed(Rule::Review.doing()))?);
        let review: TokenReview = self.answer(Rule::Review, Method::POST, PATH, Bytes::copy_from_slice(&body)).await?;
        Ok(review.status.owner(&self.audience))
    }

    /// Checks that the API server permits the request of `rule`, and answers it. Changes nothing.
    ///
    /// # Errors
    /// Why not.
    pub async fn probe(&self, rule: Rule) -> Result<(), Error> {
        match rule {
            Rule::List => self.page(None, 1).await.map(drop),
            Rule::Watch => {
                let version = self.page(None, 1).await?.metadata.resource_version;
                self.watching(&version, Duration::from_secs(1)).await.map(drop)
            }
            Rule::Review => self.review(&Secret::new("loopgate-check".to_owned())).await.map(drop),
        }
    }

    async fn pods(&self, query: &str) -> Result<String, Error> {
        let namespace = self.file("namespace").await?;
        let namespace = namespace.trim();
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if namespace.is_empty() || !namespace.chars().all(legal) {
            return Err(self.invalid("namespace", "not the name of a namespace"));
        }
        Ok(format!("/api/v1/namespaces/{namespace}/pods?{query}"))
    }

    async fn file(&self, name: &str) -> Result<Zeroizing<String>, Error> {
        let path = self.credentials.join(name);
        let text = tokio::fs::read_to_string(&path).await;
        text.map(Zeroizing::new).map_err(|source| Error::Credentials { path, source })
    }

    fn invalid(&self, file: &str, why: &'static str) -> Error {
        Error::Credentials {
            path: self.credentials.join(file),
            source: io::Error::new(io::ErrorKind::InvalidData, why),
        }
    }

    /// Sends a request, and reads the whole answer within [`ANSWER`].
    async fn answer<T: DeserializeOwned>(
        &self,
        rule: Rule,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Error> {
        let answer = async {
            let bytes = whole(rule, self.send(rule, method, path, body).await?).await?;
            serde_json::from_slice(&bytes).map_err(|_| Error::Malformed(rule.doing()))
        };
        timeout(ANSWER, answer).await.map_err(|_| Error::Timeout(rule.doing()))?
    }

    /// Sends a request, and turns every answer but a success into an error.
    async fn send(&self, rule: Rule, method: Method, path: &str, body: Bytes) -> Result<Response<ResponseBody>, Error> {
        let doing = rule.doing();
        let server = self.server.clone().ok_or(Error::NoServer)?;
        let token = self.file("token").await?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.trim()));
        let mut bearer = HeaderValue::from_str(&bearer)
            .map_err(|_| self.invalid("token", "the token has characters that no header can carry"))?;
        bearer.set_sensitive(true);
        let host = HeaderValue::from_str(&server).map_err(|_| Error::NoServer)?;
        let json = HeaderValue::from_static("application/json");
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| Error::Malformed(doing))?;
        let headers = request.headers_mut();
        headers.extend([(HOST, host), (AUTHORIZATION, bearer), (ACCEPT, json.clone()), (CONTENT_TYPE, json)]);

        let connecting = timeout(CONNECT, self.connect(&server)).await.unwrap_or_else(|_| {
            let source = io::ErrorKind::TimedOut.into();
            Err(Error::Connect { server: server.clone(), source })
        });
        let failed = |source| Error::Http { doing, source };
        let response = send_request(connecting?, request).await.map_err(failed)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = whole(rule, response).await.unwrap_or_default();
        let message = serde_json::from_slice::<Status>(&body).map(|status| status.message).unwrap_or_default();
        Err(refused(rule, status, one_line(&message)))
    }

    async fn connect(&self, server: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
        let ca = self.file("ca.crt").await?;
        let mut roots = RootCertStore::empty();
        let (added, _) =
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).filter_map(Result::ok));
        if added == 0 {
            return Err(self.invalid("ca.crt", "there is no valid certificate in it"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.3 and 1.2")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let failed = |source| Error::Connect { server: server.to_owned(), source };
        let host =
            server.rsplit_once(':').map_or(server, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = TcpStream::connect(server).await.map_err(failed)?;
        let keepalive = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)
    }
}

fn selector() -> String {
    format!("labelSelector={}", query_value(POD_AGENT))
}

fn refused(rule: Rule, status: StatusCode, message: String) -> Error {
    match status {
        StatusCode::UNAUTHORIZED => Error::Unauthorized(message),
        StatusCode::FORBIDDEN => Error::Forbidden { rule, message },
        StatusCode::GONE => Error::Expired,
        _ => Error::Refused { doing: rule.doing(), status: status.as_u16(), message },
    }
}

async fn whole(rule: Rule, response: Response<ResponseBody>) -> Result<Vec<u8>, Error> {
    read_all(response.into_body(), MAX_ANSWER).await.map_err(|source| Error::Body { doing: rule.doing(), source })
}

/// Reads the lines of `body`, each of which is an event.
fn events(body: ResponseBody) -> Events {
    let lines = Lines::new(body, MAX_LINE);
    let events = futures_util::stream::try_unfold(lines, |mut lines| async move {
        let doing = Rule::Watch.doing();
        match lines.next().await.map_err(|source| Error::Body { doing, source })? {
            Some(line) => Ok(Some((event(&line)?, lines))),
            None => Ok(None),
        }
    });
    events.boxed()
}

fn event(line: &[u8]) -> Result<Event, Error> {
    #[derive(Deserialize)]
    struct Failed {
        object: Status,
    }
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    let malformed = |_| Error::Malformed(Rule::Watch.doing());
    let kind: Kind = serde_json::from_slice(line).map_err(malformed)?;
    if kind.r#type == "ERROR" {
        let Failed { object } = serde_json::from_slice(line).map_err(malformed)?;
        let status = StatusCode::from_u16(object.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err(refused(Rule::Watch, status, one_line(&object.message)));
    }
    serde_json::from_slice(line).map_err(malformed)
}
