//! TLS of downstream connections: the server configuration, and the handshake with its deadline.
//!
//! It reads the names in a client certificate. What they mean for a connection is decided by [`crate::lane`].

mod certificate;
mod plain;
mod provider;
mod read_ahead;
mod server;

pub use certificate::{ClientAuthorities, Error as CertificateError};
pub(crate) use provider::provider;
pub use read_ahead::ReadAhead;
pub use server::{ENROL, Error, Handshake, Stream, TlsServerConfig, accept};
