//! The access log's line for a request.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName};

use crate::lane::Lane;
use crate::proxy::connection_context::ConnectionContext;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is noted of a request's head before it is sent on.
pub struct AccessLog {
    /// The client, which a trusted proxy may name.
    pub client: IpAddr,
    /// The client's own id, if it sent one that is well-formed; else one that loopgate made.
    pub request_id: String,
}

impl AccessLog {
    pub fn new(context: &ConnectionContext, headers: &HeaderMap) -> Self {
        let lane = match &*context.lane {
            Lane::External(lane) => lane,
            Lane::Agent(lane) => &lane.as_external,
        };
        let client = lane.request_client(headers, context.shared.rules.load().policy());
        let stated = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_id(id));
        Self { client, request_id: stated.map_or_else(next_id, str::to_owned) }
    }
}

/// Returns whether `id` may stand for a request in logs and responses.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// Makes an id for a request, unique in one run of loopgate and most likely beyond.
pub fn next_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PREFIX: LazyLock<u32> = LazyLock::new(|| {
        use std::hash::{BuildHasher, RandomState};
        u32::try_from(RandomState::new().hash_one(std::process::id()) >> 32).unwrap_or(0)
    });
    format!("{:08x}-{:06x}", *PREFIX, NEXT.fetch_add(1, Ordering::Relaxed))
}
