//! HTTP between a downstream connection and the gateway.
//!
//! | files, from the top | do |
//! | --- | --- |
//! | `server` | the interface for `app`: accepts connections, takes new configurations, lists connections |
//! | `connection` | one connection, from accept to its last byte |
//! | `request` | one request: checked, sent to the gateway, answered or upgraded |
//! | `connection_context`, `shared` | what the requests of a connection share; what all connections share |
//! | `registry`, `tunnel` | the open connections, and which of them must close; the bytes after a `101` |
//! | `upstream` | connections to the gateway, and the limits on concurrent requests there |
//! | `downstream` | the bytes of a client's connection, below hyper |
//! | all others | errors, labels, the close signal, a timer, the trailers of chunked bodies |
//!
//! A file imports only from its own row and from rows below. There are two exceptions: `error`
//! wraps an error of `upstream`, and `downstream` holds a guard of `registry`, whose drop removes
//! the connection.

mod chunked_trailers;
pub mod close_signal;
mod connection;
mod connection_context;
mod downstream;
mod error;
mod h1_fields;
mod lazy_timer;
mod read_offset;
mod registry;
mod request;
mod request_end;
mod server;
mod shared;
pub mod tunnel;
mod upstream;

#[cfg(any(test, fuzzing))]
pub(crate) use downstream::{
    activity::Activity,
    h1_request_guard::{GuardedInput, H1RequestGuard, INVALID_END},
    head_tracker::{HeadTracker, RequestHandle},
    io::Downstream,
    refused_heads::{DroppedHeads, HeadRefusal},
};
#[cfg(any(test, fuzzing))]
pub(crate) use upstream::{
    h1::{connection::H1Connection, encode::Framing, error::ExchangeError, response_head::HeadLimits},
    request_body::BrokenBody,
};

pub use error::Error;
pub use registry::ConnectionInfo;
pub use server::{Proxy, ProxyDependencies};
pub use shared::Enrol;
pub use upstream::pool::MAX_IDLE;
