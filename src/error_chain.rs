//! Formats an error together with its causes.

use std::error::Error;

/// Returns `error` and its causes in one string, the outermost first, separated by `: `.
pub fn error_chain(error: &dyn Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(cause) => format!("{error}: {}", error_chain(cause)),
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading the token")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_cause_is_printed() {
        let error = Outer(std::io::Error::other("no such disk"));
        assert_eq!(error_chain(&error), "reading the token: no such disk");
        assert_eq!(error_chain(&std::io::Error::other("alone")), "alone");
    }

    /// Errors of hyper don't print their causes themselves.
    #[tokio::test]
    async fn the_cause_of_an_error_of_hyper_is_printed() {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let fail = service_fn(async |_| Err::<Response<String>, _>(std::io::Error::other("no such disk")));
        let error = http1::Builder::new().serve_connection(TokioIo::new(server), fail).await.unwrap_err();
        assert!(!error.to_string().contains("no such disk"), "{error}");
        assert_eq!(error_chain(&error), format!("{error}: no such disk"));
    }
}
