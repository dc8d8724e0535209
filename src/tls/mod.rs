//! The TLS side of a downstream connection: rustls configurations out of identities, and the handshake with its deadline.
