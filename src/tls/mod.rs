//! The TLS side of a downstream connection: rustls configurations out of identities, and the handshake with its deadline.
//!
//! It reads who a client certificate names, but does not judge what that makes of a connection: that is [`crate::lane`]'s.

mod certificate;
mod plain;
mod server;
mod wide;

pub use certificate::{ClientAuthorities, Error as CertificateError};
pub(crate) use server::provider;
pub use server::{ENROL, Error, Handshake, Stream, Terms, accept};
pub use wide::Wide;
