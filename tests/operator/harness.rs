//! A sidecar with a gateway that listens and does nothing else.

use std::net::TcpListener;

use loopgate_test_support::sidecar::{Launch, Sidecar};

pub use loopgate_test_support::sidecar::{free_address, loopgate};

/// A running sidecar and its gateway, which accepts no connection and never answers.
pub struct Harness {
    pub gateway: Option<TcpListener>,
    sidecar: Sidecar,
}

impl std::ops::Deref for Harness {
    type Target = Sidecar;

    fn deref(&self) -> &Sidecar {
        &self.sidecar
    }
}

impl Harness {
    /// Starts the gateway's listener, and the sidecar with additional `flags`.
    pub fn start(flags: &[&str]) -> Self {
        let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
        let sidecar = Launch::new().gateway(gateway.local_addr().unwrap()).flags(flags).start();
        Self { gateway: Some(gateway), sidecar }
    }
}
