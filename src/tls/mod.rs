//! TLS on downstream connections: the server configuration, and the handshake with its deadline.
//!
//! This module verifies client certificates and reads their names. [`crate::lane`] decides which
//! lane follows from them.

mod client_ca;
mod client_verifier;
mod plain;
mod provider;
mod read_ahead;
mod server;

pub use client_ca::{ClientAuthorities, Error as ClientCaError};
pub use client_verifier::{register, signature_check_count};
pub(crate) use provider::provider;
pub use read_ahead::ReadAhead;
pub use server::{ENROLMENT_ALPN, Error, Handshake, Stream, TlsServerConfig, accept};
