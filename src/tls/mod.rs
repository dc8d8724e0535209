//! TLS of downstream connections: the server configuration, and the handshake with its deadline.
//!
//! It reads the names in a client certificate. What they mean for a connection is decided by [`crate::lane`].

mod client_ca;
mod client_verifier;
mod plain;
mod provider;
mod read_ahead;
mod server;

pub use client_ca::{ClientAuthorities, Error as ClientCaError};
pub use client_verifier::{register, signature_checks};
pub(crate) use provider::provider;
pub use read_ahead::ReadAhead;
pub use server::{ENROLMENT_ALPN, Error, Handshake, Stream, TlsServerConfig, accept};
