//! HTTP between a downstream connection and the gateway.
//!
//! `server` is what `app` calls. `connection` takes one connection from accept to its last byte,
//! `request` one request; `upstream` owns the connections to the gateway, and `tunnel` joins what
//! is left after a `101`. Files import only from those listed after them: `server`, `connection`,
//! `request`, `session`, `shared`, `upstream` and `tunnel` and `registry` and `downstream`, and the
//! small ones at the end.

mod chunked_end;
pub mod close_signal;
mod connection;
mod downstream;
mod error;
mod h1_fields;
mod lazy_timer;
mod registry;
mod request;
mod request_end;
mod server;
mod session;
mod shared;
pub mod tunnel;
mod upstream;

#[cfg(any(test, fuzzing))]
pub(crate) use downstream::{
    activity::Activity,
    h1_request_guard::{H1RequestGuard, encode},
    interims::{InterimSender, Interims},
    io::Downstream,
    refused_heads::HeadRefusal,
};
pub use error::Error;
pub use registry::ConnectionInfo;
pub use server::Proxy;
pub use shared::Enrol;
pub use upstream::pool::MAX_IDLE;
