//! The Kubernetes API as loopgate uses it: `list` and `watch` of labelled pods in one namespace, and `create` of token reviews.
//!
//! hyper and rustls, which are here anyway, speak it. The `kube` client would bring some sixty crates for these three requests, and hide what
//! has to be told: which rule is missing, and when a list has grown too old. Each request has a connection of its own and reads the
//! credentials anew, so neither a restarted server nor a token that was rotated needs anything to be done about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
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

use super::object::{Event, List, Status, TokenReview};
use crate::config;
use crate::discovery::labels::POD_AGENT;
use crate::error_chain::error_chain;
use crate::http_client::{ResponseBody, send_request};
use crate::secret::Secret;

/// For a connection to be made, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// For a whole answer, and for the head of a watch.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the API server shall keep a watch open. It sends bookmarks meanwhile, about one a minute.
const WATCH: Duration = Duration::from_secs(290);
/// How much longer it is waited for: whoever is silent for so long is gone.
const OVERDUE: Duration = Duration::from_secs(30);
/// After how long without a word the kernel asks whether the other end is there, and how often.
const PROBE: Duration = Duration::from_secs(5);
/// Pods in one answer.
const PAGE: u32 = 250;
/// More bytes than a page of pods has, each of which etcd limits to 1.5 MiB, and most of which have some KiB.
const MAX_ANSWER: usize = 64 << 20;
/// More bytes than an event has.
const MAX_LINE: usize = 4 << 20;

/// What goes wrong between loopgate and the API server, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing says where it is.
    #[error("no API server is named: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, and neither is --kubernetes-api")]
    NoServer,
    /// The service account's files are not there, or make no sense.
    #[error("no use is to be made of {}: mount the service account's token, ca.crt and namespace", path.display())]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can't be reached, or is not the one that `ca.crt` vouches for.
    #[error("the API server {server} can't be reached")]
    Connect {
        /// Where.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{doing} failed")]
    Http {
        /// What was asked for.
        doing: &'static str,
        /// Why.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("the API server does not answer: {0}")]
    Timeout(&'static str),
    /// The service account's token does not count.
    #[error("the API server does not accept loopgate's own service-account token (401): {0}")]
    Unauthorized(String),
    /// A rule is missing.
    #[error("forbidden (403): loopgate's service account needs a {} ({message})", rule.remedy())]
    Forbidden {
        /// Which.
        rule: Rule,
        /// What the API server says.
        message: String,
    },
    /// The list that a watch is to go on from has grown too old.
    #[error("the API server has forgotten where the watch was (410)")]
    Expired,
    /// Any other answer.
    #[error("{doing} was answered {status}: {message}")]
    Refused {
        /// What was asked for.
        doing: &'static str,
        /// The HTTP status.
        status: u16,
        /// What came with it.
        message: String,
    },
    /// An answer that makes no sense. The parser's own words are left out: they may quote a token.
    #[error("{0} was answered with something that is not understood")]
    Malformed(&'static str),
    /// An answer without an end.
    #[error("{0} was answered with more than is borne")]
    TooLong(&'static str),
    /// The watch ended sooner than it should.
    #[error("the watch ended")]
    WatchEnded,
}

impl Error {
    /// The error with its causes, on one line.
    pub fn chain(&self) -> String {
        one_line(&error_chain(self))
    }

    /// Whether the API server forbids the request.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }
}

/// A request that loopgate needs to be permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `list pods`
    List,
    /// `watch pods`
    Watch,
    /// `create tokenreviews`
    Review,
}

impl Rule {
    fn doing(self) -> &'static str {
        match self {
            Self::List => "list pods",
            Self::Watch => "watch pods",
            Self::Review => "create tokenreviews",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::List => "Role in its namespace with the verb list on pods",
            Self::Watch => "Role in its namespace with the verb watch on pods",
            Self::Review => "ClusterRole with the verb create on tokenreviews of authentication.k8s.io",
        }
    }
}

/// Whose a token is, as the API server vouches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOf {
    /// The user: `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// The name of the pod that the token is bound to.
    pub pod: String,
    /// Its uid.
    pub uid: String,
}

/// The way to one API server.
#[derive(Clone, Debug)]
pub struct Api {
    /// `host:port`, if anything says where it is.
    server: Option<String>,
    credentials: PathBuf,
    audience: String,
}

/// What a watch sends, as it comes.
pub type Events = BoxStream<'static, Result<Event, Error>>;

impl Api {
    /// The API server that the configuration names, or else the variables that Kubernetes sets in every pod.
    pub fn new(config: &config::Kubernetes) -> Self {
        let server = config.api.clone().or_else(|| {
            let host = std::env::var("KUBERNETES_SERVICE_HOST").ok().filter(|host| !host.is_empty())?;
            let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().filter(|port| !port.is_empty())?;
            Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
        });
        Self { server, credentials: config.credentials.clone(), audience: config.audience.clone() }
    }

    /// Where it is, as a URL.
    pub fn name(&self) -> String {
        self.server.as_ref().map_or_else(|| "the API server".into(), |server| format!("https://{server}"))
    }

    /// One page of the labelled pods: the first, or the one that `after` leads to.
    ///
    /// No resource version is named, so the answer is what etcd has: a cache of the API server's could bring the dead back.
    pub(super) async fn list(&self, after: Option<&str>) -> Result<List, Error> {
        self.page(after, PAGE).await
    }

    async fn page(&self, after: Option<&str>, limit: u32) -> Result<List, Error> {
        let mut query = format!("{}&limit={limit}", selector());
        if let Some(after) = after {
            query = format!("{query}&continue={}", encode(after));
        }
        self.answer(Rule::List, Method::GET, &self.pods(&query).await?, Bytes::new()).await
    }

    /// What happens to labelled pods after `version`.
    pub(super) async fn watch(&self, version: &str) -> Result<Events, Error> {
        let response = self.watching(version, WATCH).await?;
        Ok(events(response.into_body()))
    }

    async fn watching(&self, version: &str, life: Duration) -> Result<Response<ResponseBody>, Error> {
        let (selector, version, life) = (selector(), encode(version), life.as_secs());
        let query = format!("{selector}&watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={life}");
        let path = self.pods(&query).await?;
        let response = timeout(ANSWER, self.send(Rule::Watch, Method::GET, &path, Bytes::new())).await;
        response.map_err(|_| Error::Timeout(Rule::Watch.doing()))?
    }

    /// Asks whose `token` is; `None` where it does not count, or is bound to no pod, or is for another audience.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn review(&self, token: &Secret) -> Result<Option<TokenOf>, Error> {
        const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
        // Not by way of a `Value`, which would leave copies of the token in memory.
        let spec = super::object::Asked::new(token, &self.audience);
        let body = Zeroizing::new(serde_json::to_vec(&spec).map_err(|_| Error::Malformed(Rule::Review.doing()))?);
        let review: TokenReview = self.answer(Rule::Review, Method::POST, PATH, Bytes::copy_from_slice(&body)).await?;
        Ok(review.status.token_of(&self.audience))
    }

    /// Whether the API server permits what `rule` says, and answers it. Changes nothing.
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
            return Err(self.useless("namespace", "it names no namespace"));
        }
        Ok(format!("/api/v1/namespaces/{namespace}/pods?{query}"))
    }

    async fn file(&self, name: &str) -> Result<Zeroizing<String>, Error> {
        let path = self.credentials.join(name);
        let text = tokio::fs::read_to_string(&path).await;
        text.map(Zeroizing::new).map_err(|source| Error::Credentials { path, source })
    }

    fn useless(&self, file: &str, why: &'static str) -> Error {
        Error::Credentials { path: self.credentials.join(file), source: io::Error::new(io::ErrorKind::InvalidData, why) }
    }

    /// A whole answer, in time.
    async fn answer<T: DeserializeOwned>(&self, rule: Rule, method: Method, path: &str, body: Bytes) -> Result<T, Error> {
        let exchange = async {
            let bytes = whole(rule, self.send(rule, method, path, body).await?).await?;
            serde_json::from_slice(&bytes).map_err(|_| Error::Malformed(rule.doing()))
        };
        timeout(ANSWER, exchange).await.map_err(|_| Error::Timeout(rule.doing()))?
    }

    /// Sends a request, and turns every answer but a success into an error.
    async fn send(&self, rule: Rule, method: Method, path: &str, body: Bytes) -> Result<Response<ResponseBody>, Error> {
        let doing = rule.doing();
        let server = self.server.clone().ok_or(Error::NoServer)?;
        let token = self.file("token").await?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.trim()));
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|_| self.useless("token", "it holds what no header can carry"))?;
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
        let told = whole(rule, response).await.unwrap_or_default();
        let message = serde_json::from_slice::<Status>(&told).map(|status| status.message).unwrap_or_default();
        Err(refused(rule, status, one_line(&message)))
    }

    async fn connect(&self, server: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
        let ca = self.file("ca.crt").await?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).filter_map(Result::ok));
        if added == 0 {
            return Err(self.useless("ca.crt", "it holds no certificate"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.3 and 1.2")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let failed = |source| Error::Connect { server: server.to_owned(), source };
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = TcpStream::connect(server).await.map_err(failed)?;
        let keepalive = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)
    }
}

fn selector() -> String {
    format!("labelSelector={}", encode(POD_AGENT))
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
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| Error::Http { doing: rule.doing(), source })?;
        bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        if bytes.len() > MAX_ANSWER {
            return Err(Error::TooLong(rule.doing()));
        }
    }
    Ok(bytes)
}

/// The lines of `body`, each of which is an event.
fn events(body: ResponseBody) -> Events {
    let lines = futures_util::stream::try_unfold((body, Vec::<u8>::new()), |(mut body, mut read)| async move {
        let doing = Rule::Watch.doing();
        let mut seen = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &read[seen..]) {
                let rest = read.split_off(seen + at + 1);
                let event = event(&read)?;
                return Ok(Some((event, (body, rest))));
            }
            seen = read.len();
            if seen > MAX_LINE {
                return Err(Error::TooLong(doing));
            }
            match timeout(WATCH + OVERDUE, body.frame()).await.map_err(|_| Error::Timeout(doing))? {
                Some(frame) => {
                    let frame = frame.map_err(|source| Error::Http { doing, source })?;
                    read.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                }
                None if read.is_empty() => return Ok(None),
                None => return Err(Error::Malformed(doing)),
            }
        }
    });
    lines.boxed()
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

/// `text` as a value in a query.
fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Without line breaks, and not longer than a log can bear.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(400).collect()
}
