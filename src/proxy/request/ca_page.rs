//! Answers requests for the certificate of loopgate's CA (`external.serve_ca`).

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};

use super::record::RequestRecord;
use super::response_body::ResponseBody;
use crate::pki::{ServedCa, SubjectName};
use crate::tls::TlsServerConfig;

/// The path of the page. The other formats have a suffix.
const PAGE_PATH: &str = "/.well-known/loopgate/ca";
/// The content security policy of the page: it may use its style sheet, and nothing else.
const SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A format in which the certificate is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CaFormat {
    Page,
    Pem,
    Der,
    Profile,
}

impl CaFormat {
    /// Returns the format that is served at `path`; `None` if none is.
    fn for_path(path: &str) -> Option<Self> {
        match path.strip_prefix(PAGE_PATH)? {
            "" => Some(Self::Page),
            ".pem" => Some(Self::Pem),
            ".crt" => Some(Self::Der),
            ".mobileconfig" => Some(Self::Profile),
            _ => None,
        }
    }

    /// Returns the header fields of the response.
    fn headers(self) -> &'static [(HeaderName, &'static str)] {
        match self {
            Self::Page => &[(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, SECURITY_POLICY)],
            Self::Pem => &[
                (CONTENT_TYPE, "application/x-pem-file"),
                (CONTENT_DISPOSITION, "attachment; filename=\"loopgate-ca.pem\""),
            ],
            Self::Der => &[
                (CONTENT_TYPE, "application/x-x509-ca-cert"),
                (CONTENT_DISPOSITION, "attachment; filename=\"loopgate-ca.crt\""),
            ],
            Self::Profile => &[(CONTENT_TYPE, "application/x-apple-aspen-config")],
        }
    }
}

/// A request for the CA's certificate. loopgate answers it after all checks that every request must
/// pass.
pub struct CaRequest {
    format: CaFormat,
    method: Method,
    /// The page's URL, if the client used one of loopgate's names.
    url: Option<String>,
    ca: Arc<ServedCa>,
}

impl CaRequest {
    /// Returns `parts` as a request for the CA's certificate; `None` if they are another request,
    /// or the CA is not served.
    pub fn from_parts(parts: &Parts, tls: &ArcSwap<TlsServerConfig>) -> Option<Self> {
        // The path is checked first: all other requests cost one comparison.
        let format = CaFormat::for_path(parts.uri.path())?;
        let tls = tls.load();
        let ca = Arc::clone(tls.served_ca()?);
        let url = if format == CaFormat::Page { page_url(&parts.uri, &parts.headers, tls.names()) } else { None };
        Some(Self { format, method: parts.method.clone(), url, ca })
    }

    /// Creates the response: the certificate, or a 405 to a method other than GET and HEAD. Marks
    /// its body as complete in `record`.
    pub fn response(self, record: &Arc<RequestRecord>) -> Response<ResponseBody> {
        let is_allowed = matches!(self.method, Method::GET | Method::HEAD);
        let content = match self.format {
            _ if !is_allowed => Bytes::from_static(b"The methods of this path are GET and HEAD.\n"),
            CaFormat::Page => self.ca.page(self.url.as_deref()),
            CaFormat::Pem => self.ca.pem(),
            CaFormat::Der => self.ca.der(),
            CaFormat::Profile => self.ca.profile(),
        };
        let length = content.len();
        let content = if self.method == Method::HEAD { Bytes::new() } else { content };
        record.mark_body_complete();
        let mut response = Response::new(ResponseBody::from_loopgate(content, Arc::clone(record)));
        let headers = response.headers_mut();
        let mut insert = |name: HeaderName, value| drop(headers.insert(name, HeaderValue::from_static(value)));
        insert(CACHE_CONTROL, "no-store");
        insert(X_CONTENT_TYPE_OPTIONS, "nosniff");
        if is_allowed {
            self.format.headers().iter().for_each(|(name, value)| insert(name.clone(), *value));
        } else {
            insert(ALLOW, "GET, HEAD");
            insert(CONTENT_TYPE, "text/plain; charset=utf-8");
        }
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        if !is_allowed {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        }
        response
    }
}

/// Returns the page's URL, if the client used one of `names`. The page shows the URL as a QR code,
/// which must not lead to another host.
fn page_url(uri: &Uri, headers: &HeaderMap, names: &BTreeSet<SubjectName>) -> Option<String> {
    let sent = || headers.get(HOST)?.to_str().ok()?.parse::<Authority>().ok();
    let authority = uri.authority().cloned().or_else(sent)?;
    let host = authority.host();
    let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse().ok()?;
    let is_own = names.contains(&name)
        || matches!(&name, SubjectName::Dns(name) if name.split_once('.').is_some_and(|(_, parent)|
            names.contains(&SubjectName::Dns(format!("*.{parent}")))));
    (is_own && !authority.as_str().contains('@')).then(|| format!("https://{authority}{PAGE_PATH}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_exact_paths_are_answered() {
        let table = [
            ("/.well-known/loopgate/ca", Some(CaFormat::Page)),
            ("/.well-known/loopgate/ca.pem", Some(CaFormat::Pem)),
            ("/.well-known/loopgate/ca.crt", Some(CaFormat::Der)),
            ("/.well-known/loopgate/ca.mobileconfig", Some(CaFormat::Profile)),
            ("/.well-known/loopgate/ca.key", None),
            ("/.well-known/loopgate/ca/", None),
            ("/.well-known/loopgate/CA", None),
            ("/.well-known/loopgate/", None),
            ("/x/.well-known/loopgate/ca", None),
            ("/", None),
        ];
        for (path, expected) in table {
            assert_eq!(CaFormat::for_path(path), expected, "{path}");
        }
    }

    #[test]
    fn the_page_shows_its_url_only_for_loopgates_names() {
        let names: BTreeSet<SubjectName> = ["gateway", "gw.example.com", "*.example.net", "172.18.0.2", "fd00::2"]
            .map(|name| name.parse().unwrap())
            .into();
        let table = [
            ("gateway:18789", true),
            ("gateway", true),
            ("GW.example.com", true),
            ("a.example.net:8443", true),
            ("a.b.example.net", false),
            ("172.18.0.2:18789", true),
            ("[fd00::2]:18789", true),
            ("172.18.0.3", false),
            ("evil.example:18789", false),
            ("user@gateway", false),
            ("", false),
        ];
        for (host, expected) in table {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            let expected = expected.then(|| format!("https://{host}{PAGE_PATH}"));
            assert_eq!(page_url(&Uri::from_static(PAGE_PATH), &headers, &names), expected, "{host}");
        }
        let absolute = Uri::from_static("https://gateway:18789/.well-known/loopgate/ca");
        assert_eq!(
            page_url(&absolute, &HeaderMap::new(), &names).as_deref(),
            Some("https://gateway:18789/.well-known/loopgate/ca")
        );
    }
}
