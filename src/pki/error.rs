//! What can go wrong with certificates and their files. Every error names the file; where the cure is known, it names that too.

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;

/// Why there is no certificate, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `create`, ...
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is there, but not what it should be. It is left as it is.
    #[error("{} is not usable{}", path.display(), remedy(path))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        flaw: Flaw,
    },
    /// Something is wrong with a file of the operator's own pair.
    #[error("{key}")]
    Given {
        /// The key that names the file, and the flag.
        key: &'static str,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A file is missing whose partner is there, which no crash of loopgate's own can cause.
    #[error("{} is missing although {} is there{}", path.display(), partner.display(), remedy(path))]
    Missing {
        /// The missing file.
        path: PathBuf,
        /// The file that is of no use without it.
        partner: PathBuf,
    },
    /// There is no CA where one is needed and none is to be made.
    #[error("there is no certificate authority in {} (`loopgate run` and `loopgate cert issue` make one)", dir.display())]
    NoAuthority {
        /// The state directory.
        dir: PathBuf,
    },
    /// A private key that every user of the machine may read or write.
    #[error("{} is open to every user (mode {mode:04o}): run `chmod 600` on it, or replace the key if it may have been copied", path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process holds the state directory's lock.
    #[error("{} is held by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The clock is so wrong that a certificate made now would be void.
    #[error("the clock says {now}, which can't be; a certificate made now would be void")]
    Clock {
        /// What the clock says.
        now: OffsetDateTime,
    },
    /// The CA isn't valid at this time, so nothing it signs would be.
    #[error("{} is valid from {not_before} until {not_after} only, and the clock says {now}", path.display())]
    CaNotValid {
        /// The CA certificate's file.
        path: PathBuf,
        /// From when it is valid.
        not_before: OffsetDateTime,
        /// Until when.
        not_after: OffsetDateTime,
        /// What the clock says.
        now: OffsetDateTime,
    },
    /// A name that can't stand in a certificate.
    #[error("{name:?} is neither an IP address nor a DNS name")]
    Name {
        /// The name as it was given.
        name: String,
    },
    /// A trust domain or agent name that can't stand in a SPIFFE ID.
    #[error("{part:?} can't be part of a SPIFFE ID: 1 to 63 letters, digits, `-`, `_` and `.`, the first a letter or digit")]
    SpiffeId {
        /// The part as it was given.
        part: String,
    },
    /// A lifetime that no client would accept, or none at all.
    #[error("a certificate must live at least a minute and at most 397 days")]
    Lifetime,
    /// A certificate signing request that is malformed, not signed by its own key, or for another kind of key than P-256.
    #[error("the certificate signing request is not acceptable")]
    Request {
        /// What is wrong with it.
        #[source]
        flaw: Flaw,
    },
    /// Signing failed.
    #[error("cannot make a certificate")]
    Issue(#[source] rcgen::Error),
    /// Our own verifier refuses a certificate just made; it is not used.
    #[error("the certificate just made does not verify")]
    Verify(#[source] rustls::Error),
    /// The system's random number generator failed.
    #[error("no random numbers")]
    Random,
}

impl Error {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn given(key: &'static str) -> impl FnOnce(Self) -> Self {
        move |error| Self::Given { key, source: Box::new(error) }
    }

    pub(super) fn unusable(path: impl Into<PathBuf>) -> impl FnOnce(Flaw) -> Self {
        let path = path.into();
        move |flaw| Self::Unusable { path, flaw }
    }
}

/// What is wrong with a file's content.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// It has no bytes.
    #[error("it is empty")]
    Empty,
    /// It is a directory, a device, a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is larger than any certificate chain or key.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// It is no PEM, or ends within a section.
    #[error("it is not PEM, or cut off")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// There is no certificate in it.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// There is no private key in it.
    #[error("there is no private key in it")]
    NoKey,
    /// A certificate in it can't be parsed.
    #[error("a certificate in it can't be read")]
    Certificate(#[source] x509_parser::error::X509Error),
    /// A certificate's dates are beyond the calendar.
    #[error("a certificate's dates are out of range")]
    Dates,
    /// The key in it can't be parsed.
    #[error("the private key in it can't be read")]
    Key(#[source] rcgen::Error),
    /// The TLS library refuses the certificate, the key, or the two together.
    #[error("key and certificate can't be used together")]
    Pair(#[source] rustls::Error),
    /// The certificate in it is no CA's.
    #[error("its certificate may not sign certificates")]
    NotACa,
    /// The certificate can't be used as an issuer.
    #[error("its certificate has a subject or key identifier that can't be copied into others")]
    Issuer(#[source] rcgen::Error),
    /// The certificate belongs to another key.
    #[error("its certificate is for another key")]
    KeyMismatch,
    /// The certificate does not chain to the CA in the state directory.
    #[error("its certificate was not signed by ca.pem")]
    NotByCa(#[source] rustls::Error),
    /// The certificate has expired, and the one that is served has not.
    #[error("its certificate expired on {0}")]
    Expired(OffsetDateTime),
    /// A signing request can't be parsed, or isn't signed by its key.
    #[error("it can't be read or is not signed by its own key")]
    Request(#[source] rcgen::Error),
    /// A signing request is for a key that is not P-256.
    #[error("its key is not a P-256 one")]
    KeyKind,
}

/// What to do about an unusable file of the state directory.
fn remedy(path: &std::path::Path) -> &'static str {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("ca.pem" | "ca.key") => {
            " (restore it from a backup; or remove ca.pem, ca.key and server.pem for a new CA, which every client must then trust anew)"
        }
        Some("server.pem") => " (remove it, and a new one is made for the same key)",
        Some("server.key") => {
            " (restore it from a backup; or remove server.key and server.pem for new ones, which clients that pin the key must be told)"
        }
        _ => "",
    }
}
