//! The values of the access log that are read from a request's head, and request ids.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName};

use crate::lane::Lane;
use crate::proxy::connection_context::ConnectionContext;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The values of a request's head that its line in the access log shows.
pub struct AccessLog {
    /// The client's address: the one that a trusted proxy names, or else the peer's.
    pub client: IpAddr,
    /// The value of `X-Request-Id`, if the client sent a well-formed one; else an id that loopgate
    /// made.
    pub request_id: String,
}

impl AccessLog {
    /// Reads the values from the `headers` of a request on the connection of `context`.
    pub fn new(context: &ConnectionContext, headers: &HeaderMap) -> Self {
        let lane = match &*context.lane {
            Lane::External(lane) => lane,
            Lane::Agent(lane) => &lane.as_external,
        };
        let client = lane.request_client(headers, context.shared.rules.load().policy());
        let stated = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_valid_id(id));
        Self { client, request_id: stated.map_or_else(new_request_id, str::to_owned) }
    }
}

/// Returns whether `id` is well-formed: 1 to 64 letters, digits and `-_.:`.
fn is_valid_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// Makes an id for a request. It is unique in one run of loopgate, and very likely in all runs.
pub fn new_request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PREFIX: LazyLock<u32> = LazyLock::new(|| {
        use std::hash::{BuildHasher, RandomState};
        u32::try_from(RandomState::new().hash_one(std::process::id()) >> 32).unwrap_or(0)
    });
    format!("{:08x}-{:06x}", *PREFIX, NEXT.fetch_add(1, Ordering::Relaxed))
}
