//! A certificate request in, attested by Docker, a certificate out.
