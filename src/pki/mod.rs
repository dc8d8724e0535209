//! Certificates: loopgate's CA and the server certificate that it signs, or the certificate and key
//! that the operator provides. Both are published as one [`ServerIdentity`].
//!
//! | files, upper layers first | contents |
//! | --- | --- |
//! | `offline`, `service` | the operations of `loopgate cert` on files; the certificate of a running sidecar |
//! | `rotation`, `source` | renewing the certificate, and following changes of its files |
//! | `managed`, `provided`, `plan` | the certificate that loopgate issues; the operator's pair; when to issue one |
//! | `authority`, `template`, `constraints`, `revocation` | the CA; contents of certificates; revoked ones |
//! | `served_ca` | the CA's certificate in the formats in which devices install it |
//! | `state_dir`, `pem`, `pkcs12` | atomic writes and locks; file formats |
//! | `certificate`, `chain`, `name`, `pin`, `identity`, `loaded`, `error` | values, and parsing of certificates |
//!
//! Only this module, enrolment and `loopgate cert` use the CA's key. Functions that access files
//! block. They are called before the runtime starts, or on its blocking threads.

mod authority;
mod certificate;
mod chain;
mod constraints;
mod error;
mod identity;
mod loaded;
mod managed;
mod name;
pub mod offline;
mod pem;
mod pin;
mod pkcs12;
mod plan;
mod provided;
mod revocation;
mod rotation;
mod served_ca;
mod service;
mod source;
mod state_dir;
mod template;
#[cfg(test)]
mod tests;

pub use authority::{CertificateAuthority, is_ca_certificate_file};
pub use error::{Error, InvalidFile};
pub use identity::ServerIdentity;
pub use managed::RotateKey;
pub use name::SubjectName;
pub use pem::encode_certificates;
pub use pin::public_key_pin;
pub use revocation::Revoked;
pub use served_ca::ServedCa;
pub use service::{Pki, open};
