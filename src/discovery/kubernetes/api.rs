//! A client of the Kubernetes API: `list` and `watch` of labelled pods in one namespace, and
//! `create` of token reviews.
//!
//! The client uses hyper and rustls, which loopgate needs anyway. The crate `kube` would add about
//! sixty crates for these three requests, and hide what must be reported: which permission is
//! missing, and that a list is too old. Each request opens a new connection and reads the
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

use super::error::{Error, Permission};
use super::object::{Event, PodList, Status, TokenOwner, TokenReview, TokenReviewRequest};
use crate::config;
use crate::discovery::agent_labels::POD_AGENT;
use crate::discovery::body::{Lines, read_all};
use crate::discovery::text::{encode_query_value, to_one_line};
use crate::http_client::{ResponseBody, send_request};
use crate::secret::Secret;

/// The timeout of opening a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of a whole response, and of the head of a watch.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The duration for which the API server is asked to keep a watch open. Meanwhile it sends about
/// one bookmark a minute.
const WATCH_TIMEOUT: Duration = Duration::from_secs(290);
/// The idle time before TCP keep-alive probes, and the interval between them.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum number of pods in one response.
const PAGE_SIZE: u32 = 250;
/// The maximum size of a response, in bytes. A pod usually has some KiB, and etcd limits it to 1.5
/// MiB.
const MAX_RESPONSE: usize = 64 << 20;
/// The maximum size of an event, in bytes.
const MAX_EVENT: usize = 4 << 20;

/// More than the length of a token review without the token and the audience, in bytes.
const REVIEW_OVERHEAD: usize = 256;

/// A client of one API server.
#[derive(Clone, Debug)]
pub struct Api {
    /// The API server as `host:port`; `None` if neither the configuration nor the environment names
    /// one.
    server: Option<String>,
    /// The directory with the service account's token, CA and namespace.
    credentials: PathBuf,
    /// The audience that agents' tokens must have.
    audience: String,
}

/// The events of a watch.
pub type WatchEvents = BoxStream<'static, Result<Event, Error>>;

impl Api {
    /// Returns a client of the API server that the configuration names, or else of the one in the
    /// environment variables that Kubernetes sets in every pod.
    pub fn new(config: &config::Kubernetes) -> Self {
        let server = config.api.clone().or_else(|| {
            let host = std::env::var("KUBERNETES_SERVICE_HOST").ok().filter(|host| !host.is_empty())?;
            let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().filter(|port| !port.is_empty())?;
            Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
        });
        Self { server, credentials: config.credentials.clone(), audience: config.audience.clone() }
    }

    /// Returns the URL of the API server, for log lines.
    pub fn name(&self) -> String {
        self.server.as_ref().map_or_else(|| "the API server".into(), |server| format!("https://{server}"))
    }

    /// Lists one page of the labelled pods: the first, or the one after the continue token `after`.
    ///
    /// The request has no resource version, so that the API server reads from etcd: its cache could
    /// list pods that are gone.
    pub(super) async fn list_pods_page(&self, after: Option<&str>) -> Result<PodList, Error> {
        self.list_pods_up_to(after, PAGE_SIZE).await
    }

    async fn list_pods_up_to(&self, after: Option<&str>, limit: u32) -> Result<PodList, Error> {
        let mut query = format!("{}&limit={limit}", label_selector());
        if let Some(after) = after {
            query = format!("{query}&continue={}", encode_query_value(after));
        }
        self.request_json(Permission::List, Method::GET, &self.read_pods_path(&query).await?, Bytes::new()).await
    }

    /// Returns the uids of all pods with the label, whether they run or not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_uids(&self) -> Result<BTreeSet<String>, Error> {
        let mut uids = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.list_pods_page(after.as_deref()).await?;
            uids.extend(page.items.unwrap_or_default().into_iter().map(|pod| pod.metadata.uid));
            if page.metadata.r#continue.is_empty() {
                return Ok(uids);
            }
            after = Some(page.metadata.r#continue);
        }
    }

    /// Watches labelled pods from `version` on.
    pub(super) async fn watch_pods(&self, version: &str) -> Result<WatchEvents, Error> {
        let response = self.open_watch(version, WATCH_TIMEOUT).await?;
        Ok(parse_events(response.into_body()))
    }

    /// Sends a request for a watch from `version` on that the API server ends after `duration`.
    /// Returns the response when its head has arrived.
    async fn open_watch(&self, version: &str, duration: Duration) -> Result<Response<ResponseBody>, Error> {
        let (selector, version, duration) = (label_selector(), encode_query_value(version), duration.as_secs());
        let query = format!(
            "{selector}&watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={duration}"
        );
        let path = self.read_pods_path(&query).await?;
        let response = timeout(RESPONSE_TIMEOUT, self.send(Permission::Watch, Method::GET, &path, Bytes::new())).await;
        response.map_err(|_| Error::Timeout(Permission::Watch.operation()))?
    }

    /// Asks the API server whose token `token` is; `None` if the token is refused, bound to no pod,
    /// or for another audience.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn review_token(&self, token: &Secret) -> Result<Option<TokenOwner>, Error> {
        const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
        let review_request = TokenReviewRequest::new(token, &self.audience);
        // The body is wiped after use. It has room for the whole request, since a buffer that grows
        // leaves copies. The buffers of hyper and rustls, and the response, which repeats the
        // token, are not wiped.
        let capacity = REVIEW_OVERHEAD + token.expose().len() + self.audience.len();
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        serde_json::to_writer(&mut *body, &review_request)
            .map_err(|_| Error::Malformed(Permission::Review.operation()))?;
        let review: TokenReview =
            self.request_json(Permission::Review, Method::POST, PATH, Bytes::from_owner(body)).await?;
        Ok(review.status.into_token_owner(&self.audience))
    }

    /// Checks that the API server permits requests with `permission`, by sending one that changes
    /// nothing. The check of [`Permission::Watch`] also needs [`Permission::List`].
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn check_permission(&self, permission: Permission) -> Result<(), Error> {
        match permission {
            Permission::List => self.list_pods_up_to(None, 1).await.map(drop),
            Permission::Watch => {
                let version = self.list_pods_up_to(None, 1).await?.metadata.resource_version;
                self.open_watch(&version, Duration::from_secs(1)).await.map(drop)
            }
            Permission::Review => self.review_token(&Secret::new("loopgate-check".to_owned())).await.map(drop),
        }
    }

    /// Returns the path of the pods in the service account's namespace, with `query`.
    ///
    /// # Errors
    /// The file with the namespace can't be read, or holds no name of a namespace.
    async fn read_pods_path(&self, query: &str) -> Result<String, Error> {
        let namespace = self.read_credential("namespace").await?;
        let namespace = namespace.trim();
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if namespace.is_empty() || !namespace.chars().all(legal) {
            return Err(self.invalid_credential("namespace", "not the name of a namespace"));
        }
        Ok(format!("/api/v1/namespaces/{namespace}/pods?{query}"))
    }

    /// Reads the service account's file `name`.
    async fn read_credential(&self, name: &str) -> Result<Zeroizing<String>, Error> {
        let path = self.credentials.join(name);
        let text = tokio::fs::read_to_string(&path).await;
        text.map(Zeroizing::new).map_err(|source| Error::Credentials { path, source })
    }

    fn invalid_credential(&self, file: &str, why: &'static str) -> Error {
        Error::Credentials {
            path: self.credentials.join(file),
            source: io::Error::new(io::ErrorKind::InvalidData, why),
        }
    }

    /// Sends a request, and parses the whole response as JSON, within [`RESPONSE_TIMEOUT`].
    async fn request_json<T: DeserializeOwned>(
        &self,
        permission: Permission,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Error> {
        let answer = async {
            let bytes = read_body(permission, self.send(permission, method, path, body).await?).await?;
            serde_json::from_slice(&bytes).map_err(|_| Error::Malformed(permission.operation()))
        };
        timeout(RESPONSE_TIMEOUT, answer).await.map_err(|_| Error::Timeout(permission.operation()))?
    }

    /// Sends a request, and turns every response but a success into an error.
    async fn send(
        &self,
        permission: Permission,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<ResponseBody>, Error> {
        let operation = permission.operation();
        let server = self.server.clone().ok_or(Error::NoServer)?;
        let token = self.read_credential("token").await?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.trim()));
        let mut bearer = HeaderValue::from_str(&bearer)
            .map_err(|_| self.invalid_credential("token", "the token has characters that no header can carry"))?;
        bearer.set_sensitive(true);
        let host = HeaderValue::from_str(&server).map_err(|_| Error::NoServer)?;
        let json = HeaderValue::from_static("application/json");
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| Error::Malformed(operation))?;
        let headers = request.headers_mut();
        headers.extend([(HOST, host), (AUTHORIZATION, bearer), (ACCEPT, json.clone()), (CONTENT_TYPE, json)]);

        let connecting = timeout(CONNECT_TIMEOUT, self.connect(&server)).await.unwrap_or_else(|_| {
            let source = io::ErrorKind::TimedOut.into();
            Err(Error::Connect { server: server.clone(), source })
        });
        let failed = |source| Error::Http { operation, source };
        let response = send_request(connecting?, request).await.map_err(failed)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = read_body(permission, response).await.unwrap_or_default();
        let message = serde_json::from_slice::<Status>(&body).map(|status| status.message).unwrap_or_default();
        Err(error_of_status(permission, status, to_one_line(&message)))
    }

    /// Opens a TLS connection to `server`, whose certificate must be signed by the CA of the
    /// service account.
    async fn connect(&self, server: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
        let ca = self.read_credential("ca.crt").await?;
        let mut roots = RootCertStore::empty();
        let (added, _) =
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).filter_map(Result::ok));
        if added == 0 {
            return Err(self.invalid_credential("ca.crt", "there is no valid certificate in it"));
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
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE_INTERVAL).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)
    }
}

fn label_selector() -> String {
    format!("labelSelector={}", encode_query_value(POD_AGENT))
}

/// Returns the error for a response whose `status` is not a success.
fn error_of_status(permission: Permission, status: StatusCode, message: String) -> Error {
    match status {
        StatusCode::UNAUTHORIZED => Error::Unauthorized(message),
        StatusCode::FORBIDDEN => Error::Forbidden { permission, message },
        StatusCode::GONE => Error::Expired,
        _ => Error::Refused { operation: permission.operation(), status: status.as_u16(), message },
    }
}

async fn read_body(permission: Permission, response: Response<ResponseBody>) -> Result<Vec<u8>, Error> {
    read_all(response.into_body(), MAX_RESPONSE)
        .await
        .map_err(|source| Error::Body { operation: permission.operation(), source })
}

/// Returns the events in `body`, one in each line.
fn parse_events(body: ResponseBody) -> WatchEvents {
    let lines = Lines::new(body, MAX_EVENT);
    let events = futures_util::stream::try_unfold(lines, |mut lines| async move {
        let operation = Permission::Watch.operation();
        match lines.next_line().await.map_err(|source| Error::Body { operation, source })? {
            Some(line) => Ok(Some((parse_event(&line)?, lines))),
            None => Ok(None),
        }
    });
    events.boxed()
}

/// Parses a line of a watch. An event of the type ERROR becomes the error that its status
/// describes.
fn parse_event(line: &[u8]) -> Result<Event, Error> {
    #[derive(Deserialize)]
    struct ErrorEvent {
        object: Status,
    }
    #[derive(Deserialize)]
    struct EventKind {
        r#type: String,
    }
    let malformed = |_| Error::Malformed(Permission::Watch.operation());
    let kind: EventKind = serde_json::from_slice(line).map_err(malformed)?;
    if kind.r#type == "ERROR" {
        let ErrorEvent { object } = serde_json::from_slice(line).map_err(malformed)?;
        let status = StatusCode::from_u16(object.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err(error_of_status(Permission::Watch, status, to_one_line(&object.message)));
    }
    serde_json::from_slice(line).map_err(malformed)
}
