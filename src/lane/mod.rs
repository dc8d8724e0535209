//! Lanes: which lane a connection is on, and what each lane may send to the gateway. Pure
//! functions, without I/O or a clock.
//!
//! [`decide_lane`] assigns a connection to a lane before its first request. The decision is made
//! again whenever the [`View`](crate::discovery::View) or the configuration changes, and a
//! connection that loses its lane is closed. An external connection that could now be an agent's
//! stays external. A request that a web page causes on an agent's connection goes out on the
//! external lane.
//!
//! [`GatewayHead`] is the only request head that the proxy can send to the gateway. It is always
//! made from a lane.
//!
//! | file | does |
//! | --- | --- |
//! | `policy`, `request_rules`, `evidence` | hold what decisions read: the configuration, and what is known of a connection |
//! | `access` | refuses connections before the TLS handshake |
//! | `decide`, `request_sender`, `assignment`, `connection` | decide the lane, and hold the result |
//! | `explain` | explains why a connection is not an agent's |
//! | `request_check`, `path`, `http_api` | refuse ambiguous requests, closed paths, the HTTP API under a scope cap |
//! | `headers` and the others | build the head that the gateway gets, and choose its source address |

mod access;
mod assignment;
mod browser;
mod connection;
mod decide;
mod evidence;
mod explain;
mod forwarded_client;
mod forwarding;
mod headers;
mod http_api;
mod path;
mod policy;
mod request_check;
mod request_rules;
mod request_sender;
mod reserved_headers;
mod scheme;
mod source_address;
mod target;
mod x_forwarded_for;

pub use access::{
    check_peer_allowed, check_plain_peer_allowed, check_proxied_client_allowed, issued_certificate_may_count,
    may_be_agent,
};
pub use assignment::{AgentBasis, AgentLane, Denied, ExternalLane, Lane};
pub use connection::ConnectionEvidence;
pub use decide::{decide_lane, decide_plain_lane};
pub use evidence::{Certificate, Evidence, Issuer, ProxyHeader};
pub use explain::{WhyExternal, why_external};
pub use forwarded_client::ForwardedClient;
pub use forwarding::Forwarding;
pub use headers::{GatewayHead, scrub_request_trailers, scrub_response, scrub_response_trailers};
pub use path::{check_path_rules, decode_path};
pub use policy::{LanePolicy, allowed_scopes};
pub use request_check::{RequestRefusal, h2_field_count, h2_head_size};
pub use request_rules::RequestRules;
pub use scheme::Scheme;
pub use target::{GatewayRoute, Target};
