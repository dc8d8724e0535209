//! One GET on a connection of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};

use http::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;

use super::{connect, within};
use crate::exchange::exchange;

/// No answer to a probe is longer.
const LONGEST_BODY: usize = 1 << 20;

/// What a probe was answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub is_json: bool,
    pub body: String,
}

/// Asks `to` for `path`, from the address `from`, with these headers; `Host` is the gateway's own unless they say otherwise.
pub(super) async fn get(to: SocketAddr, from: Option<IpAddr>, path: &str, headers: &[(HeaderName, &str)]) -> io::Result<Answer> {
    let stream = connect(to, from).await?;
    let mut request = Request::get(path).header(USER_AGENT, "loopgate-check").header(CONNECTION, "close");
    if headers.iter().all(|(name, _)| *name != HOST) {
        request = request.header(HOST, to.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let asking = async {
        let response = exchange(stream, request).await.map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_json = content_type.starts_with("application/json");
        let body = Limited::new(response.into_body(), LONGEST_BODY).collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Answer { status, is_json, body: String::from_utf8_lossy(&body).into_owned() })
    };
    within(asking).await
}
