//! Enrolment with a service-account token, without a `loopgate agent` process.

use std::sync::Arc;

use loopgate::agent::Credentials;
use loopgate::agent::enrol::{Error, enrol_by_token};
use loopgate::enrolment_protocol::{ALPN, RefusalReason};
use loopgate_test_support::tls_client::TlsClient;

/// Enrols from `source` with `token`.
pub async fn enrol(client: &TlsClient, source: &str, token: &str) -> Result<Arc<Credentials>, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), token).unwrap();
    let stream = client.handshake(client.connect_tcp(source).await, std::str::from_utf8(ALPN).unwrap()).await.unwrap();
    enrol_by_token(stream, file.path()).await.map(|(credentials, _)| credentials)
}

/// Enrols from `source` with `token`, which must be refused, and returns the reason.
pub async fn enrolment_refusal(client: &TlsClient, source: &str, token: &str) -> RefusalReason {
    match enrol(client, source, token).await {
        Err(Error::Refused(refused)) => refused.error,
        other => panic!("{other:?}"),
    }
}
