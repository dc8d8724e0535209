//! Errors of certificates and their files. Messages name the file, and the remedy if one is known.

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;

/// Why a certificate can't be loaded or issued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file or directory failed.
    #[error("can't {action} {}", path.display())]
    Io {
        /// A verb: `read`, `write`, `create`, `replace` or `sync`.
        action: &'static str,
        /// The file or directory; for a file that is replaced, its final name.
        path: PathBuf,
        /// The error of the operating system, which has no path.
        source: io::Error,
    },
    /// The content of a file is invalid. The file is left unchanged.
    #[error("can't use {}{}", path.display(), remedy_for_file(path))]
    Unusable {
        /// A file of the state directory adds a remedy to the message.
        path: PathBuf,
        /// What is wrong with the content.
        #[source]
        reason: InvalidFile,
    },
    /// `source` concerns a file of the operator's pair.
    #[error("{key}")]
    Provided {
        /// The configuration key and the flag that name the file.
        key: &'static str,
        /// [`Error::Io`] or [`Error::Unusable`].
        source: Box<Error>,
    },
    /// One file of a pair is missing. A crash of loopgate can't cause this.
    #[error("{} is missing, but {} exists{}", path.display(), partner.display(), remedy_for_file(path))]
    Missing {
        /// The missing one: a key.
        path: PathBuf,
        /// The file that is useless without it.
        partner: PathBuf,
    },
    /// There is no CA, and this operation must not create one.
    #[error("no certificate authority in {} (`loopgate run` and `loopgate cert issue` create one)", dir.display())]
    NoAuthority {
        /// The state directory, without `ca.pem`.
        dir: PathBuf,
    },
    /// Every user of the machine may read or write a private key.
    #[error("every user may read or write {} (mode {mode:04o}): run `chmod 600` on it, or replace the key if it may \
             have been copied", path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// The permission bits, with one set for all users.
        mode: u32,
    },
    /// The lock of a directory was not free within ten seconds.
    #[error("another process holds the lock {}", path.display())]
    Locked {
        /// `.lock` in that directory.
        path: PathBuf,
    },
    /// A CA is missing, and the clock was never set. No CA is created.
    #[error(
        "the clock says {now}, which is before the first release of loopgate; set it, since a certificate issued now \
         would be invalid"
    )]
    Clock {
        /// The time by the system clock.
        now: OffsetDateTime,
    },
    /// The clock is outside the CA's validity, so no certificate that it signs would be valid.
    #[error("{} is valid from {not_before} to {not_after}, and the clock says {now}", path.display())]
    CaNotValid {
        /// The CA certificate's file.
        path: PathBuf,
        /// The start of the CA's validity.
        not_before: OffsetDateTime,
        /// The end of the CA's validity.
        not_after: OffsetDateTime,
        /// The time by the system clock.
        now: OffsetDateTime,
    },
    /// A name, such as one of `tls.names`, is not valid in a certificate.
    #[error("{name:?} is neither an IP address nor a DNS name")]
    Name {
        /// As it was given.
        name: String,
    },
    /// A trust domain or agent name that is not valid in a SPIFFE ID.
    #[error(
        "{part:?} can't be part of a SPIFFE ID: expected 1 to 63 letters, digits, `-`, `_` and `.`, starting with a \
         letter or digit"
    )]
    SpiffeId {
        /// As it was given.
        part: String,
    },
    /// Text that is not an e-mail address, or has characters that a file name or header should not
    /// have.
    #[error(
        "{text:?} is no e-mail address: expected NAME@DOMAIN of letters, digits and `.`, `_`, `+`, `-`, at most 254 \
         characters"
    )]
    User {
        /// The text as given.
        text: String,
    },
    /// The content of a password file is too short or too long, or has a character that PKCS#12
    /// can't encode.
    #[error("{} holds no password: expected one line of 12 to 128 characters", path.display())]
    Password {
        /// The file, or pipe, that was read.
        path: PathBuf,
    },
    /// A PKCS#12 file can't be encoded.
    #[error("can't encode a PKCS#12 file")]
    Pkcs12(#[source] Box<p12_keystore::error::Error>),
    /// Text is not hexadecimal, or has no or too many digits for a serial number.
    #[error("{text:?} is no serial number: expected 1 to 20 bytes in hexadecimal, as `loopgate cert issue` prints it")]
    Serial {
        /// The text as given.
        text: String,
    },
    /// A lifetime is too short to be of use, or too long for some clients.
    #[error("a certificate must be valid for at least a minute and at most 397 days")]
    Lifetime,
    /// A certificate signing request that is malformed, not signed by its own key, or not for a
    /// P-256 key.
    #[error("invalid certificate signing request")]
    Request {
        /// [`InvalidFile::Request`] or [`InvalidFile::KeyKind`].
        #[source]
        reason: InvalidFile,
    },
    /// A key can't be generated, or a certificate can't be built or signed.
    #[error("can't issue a certificate")]
    Issue(#[source] rcgen::Error),
    /// A certificate that was just issued does not verify. It is not used.
    #[error("the issued certificate does not verify")]
    Verify(#[source] rustls::Error),
    /// The random number generator failed.
    #[error("can't generate random numbers")]
    Random,
}

/// Functions for `map_err`.
impl Error {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn provided(key: &'static str) -> impl FnOnce(Self) -> Self {
        move |error| Self::Provided { key, source: Box::new(error) }
    }

    pub(super) fn unusable(path: impl Into<PathBuf>) -> impl FnOnce(InvalidFile) -> Self {
        let path = path.into();
        move |reason| Self::Unusable { path, reason }
    }
}

/// Why the content of a file is invalid.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFile {
    /// The file has no bytes.
    #[error("it is empty")]
    Empty,
    /// The file is a directory, a device or a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// The file is larger than any certificate chain or key.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// The file is not PEM, or ends within a section.
    #[error("it is not valid PEM, or is truncated")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// The file is PEM without a `CERTIFICATE` section.
    #[error("it contains no certificate")]
    NoCertificate,
    /// The file is PEM without a section for a private key.
    #[error("it contains no private key")]
    NoKey,
    /// A certificate in the file can't be parsed.
    #[error("it contains a malformed certificate")]
    Certificate(#[source] x509_parser::error::X509Error),
    /// The validity of a certificate has a year that `time` can't represent.
    #[error("a certificate's dates are out of range")]
    Dates,
    /// rcgen can't parse the private key.
    #[error("it contains a malformed private key, or one of an unsupported kind")]
    Key(#[source] rcgen::Error),
    /// The private key is encrypted, in PKCS#8 or in the older format of OpenSSL.
    #[error(
        "its private key is encrypted, and there is no way to enter a passphrase; decrypt it with `openssl pkey -in \
         OLD -out NEW`"
    )]
    EncryptedKey,
    /// The file is text in UTF-16, which some Windows programs write.
    #[error("it is UTF-16 text; save it as UTF-8")]
    Utf16,
    /// The file is DER or PKCS#12.
    #[error("it is a binary file (DER or PKCS#12); convert it to PEM with openssl")]
    Binary,
    /// The key is too weak, or of a kind that TLS clients don't accept.
    #[error("its key is refused: {0}")]
    KeyRefused(String),
    /// The TLS library rejects the private key.
    #[error("the TLS library can't use its private key")]
    TlsKey(#[source] rustls::Error),
    /// The key belongs to no certificate in the chain's file, which the field names.
    #[error("it is not the key of a certificate in {}", .0.display())]
    NotKeyOf(PathBuf),
    /// The certificate is not a CA certificate, or may not sign certificates.
    #[error("its certificate is no CA certificate")]
    NotACa,
    /// The certificate can't be used as an issuer.
    #[error("its certificate has a subject or key identifier that can't be copied into issued certificates")]
    Issuer(#[source] rcgen::Error),
    /// The certificate is for another key than that of the file beside it.
    #[error("its certificate is for another key")]
    KeyMismatch,
    /// The certificate does not chain to the CA in the state directory.
    #[error("its certificate was not signed by ca.pem")]
    NotByCa(#[source] rustls::Error),
    /// The operator's certificate has expired. It is still served.
    #[error("its certificate expired on {0}")]
    Expired(OffsetDateTime),
    /// This line, counted from 1, of the list of revoked certificates is invalid.
    #[error("line {0} is no serial number in hexadecimal")]
    RevokedLine(usize),
    /// A signing request can't be parsed, or isn't signed by its key.
    #[error("it is malformed or not signed by its own key")]
    Request(#[source] rcgen::Error),
    /// A signing request is for a key that is not P-256.
    #[error("its key is not a P-256 key")]
    KeyKind,
}

/// Returns the remedy for an invalid file of the state directory.
fn remedy_for_file(path: &std::path::Path) -> &'static str {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("ca.pem" | "ca.key") => {
            " (restore it from a backup, or remove ca.pem, ca.key and server.pem to create a new CA, which every \
             client must then trust)"
        }
        Some("server.pem") => " (remove it to issue a new one for the same key)",
        Some("server.key") => {
            " (restore it from a backup, or remove server.key and server.pem to create new ones, which breaks pins on \
             the key)"
        }
        _ => "",
    }
}
