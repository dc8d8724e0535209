//! Certificates: loopgate's own CA with a server certificate that it manages, or the pair that the
//! operator provides. Either is published as one [`ServerIdentity`].
//!
//! Only this module, enrolment and `loopgate cert` use the CA's key. Functions that access files
//! block; they are called before the runtime starts or on its blocking threads.

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
mod service;
mod source;
mod state_dir;
mod template;
#[cfg(test)]
mod tests;

pub use authority::{CertificateAuthority, is_own_authority};
pub use error::{Error, InvalidFile};
pub use identity::ServerIdentity;
pub use managed::RotateKey;
pub use name::SubjectName;
pub use pem::encode_certificates;
pub use pin::public_key_pin;
pub use revocation::Revoked;
pub use service::{Pki, open};
