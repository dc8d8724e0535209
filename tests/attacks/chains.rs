//! Hostile client certificates: a handshake with one costs little more than any other, and many of
//! them leave time for agents.

use std::time::Duration;

use loopgate_test_support::handshakes::{RunningHandshakes, handshake};
use loopgate_test_support::hostile_chain::{SHAPES, hostile_chain};
use loopgate_test_support::requirements::report;
use loopgate_test_support::sidecar::{Launch, SidecarWithGateway};
use loopgate_test_support::tls_client::TlsClient;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::{Bystanders, attack, attackers};

/// How many certificates the chains have. Those beyond the limit of intermediates must cost less, not more.
const LENGTHS: [usize; 6] = [3, 4, 5, 11, 20, 60];
/// A hostile handshake may cost so many times what another one does.
const MOST: f64 = 3.0;
/// Handshakes of each kind whose CPU time is measured.
const SAMPLE: u32 = 25;

#[test]
fn hostile_chains_cost_at_most_three_times_a_handshake() {
    attack("hostile chains: CPU time", || async {
        for asks in [Asks::CertificateFrom, Asks::ClientCa] {
            let (sidecar, name) = asks.start().await;
            let client = sidecar.without_tickets();
            cpu_each(&sidecar, &client, 20).await;
            let normal = cpu_each(&sidecar, &client, 4 * SAMPLE).await;
            report(format_args!("  {asks:?}: a handshake {normal:.2?}"));
            let mut worst = 0.0_f64;
            for shape in SHAPES {
                let mut line = Vec::new();
                for length in LENGTHS {
                    let (chain, key) = hostile_chain(shape, length, &name);
                    let hostile = client.with_certificate(chain, key).without_tickets();
                    let ratio = cpu_each(&sidecar, &hostile, SAMPLE).await.as_secs_f64() / normal.as_secs_f64();
                    worst = worst.max(ratio);
                    line.push(format!("{length} certificates {ratio:.2}"));
                }
                report(format_args!("  {shape:?}, times that: {}", line.join(", ")));
            }
            assert!(worst <= MOST, "{asks:?}: a hostile chain costs {worst:.2} handshakes");
        }
    });
}

#[test]
fn agents_are_served_while_hostile_chains_come_from_a_hundred_addresses() {
    attack("hostile chains: 30 a second from one address and 300 a second from a hundred", || async {
        let (sidecar, name) = Asks::CertificateFrom.start().await;
        let hostile: Vec<TlsClient> = SHAPES
            .into_iter()
            .flat_map(|shape| LENGTHS.map(|length| hostile_chain(shape, length, &name)))
            .map(|(chain, key)| sidecar.with_certificate(chain, key).without_tickets())
            .collect();
        let one = RunningHandshakes::start(hostile.clone(), vec!["127.0.0.5".into()], 30);
        let many = RunningHandshakes::start(hostile, attackers(100), 300);
        let bystanders = Bystanders::watch(&sidecar, Duration::from_secs(6)).await;
        report(format_args!("  {} hostile handshakes", one.count() + many.count()));
        assert!(one.count() + many.count() > 200, "that was no attack");
        assert!(
            sidecar.gateway.requests().iter().all(|request| request.start().contains(" / ")),
            "a hostile client reached the gateway"
        );
        bystanders.assert_served();
    });
}

/// Why the sidecar asks every client for a certificate.
#[derive(Debug)]
enum Asks {
    /// `agents.certificate_from`: loopgate's own CA counts.
    CertificateFrom,
    /// `tls.client_ca`: the CAs of a bundle count, too.
    ClientCa,
}

impl Asks {
    /// Starts a sidecar, and returns the name of a CA that counts.
    async fn start(&self) -> (SidecarWithGateway, String) {
        match self {
            Self::CertificateFrom => {
                let sidecar = Launch::new().flags(&["--certificate-from=127.0.0.0/8"]).start_with_gateway().await;
                let ca = CertificateDer::from_pem_file(sidecar.ca()).unwrap();
                let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
                let name = ca.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned();
                (sidecar, name)
            }
            Self::ClientCa => {
                let (file, name) = (tempfile::NamedTempFile::new().unwrap(), "the operator's CA");
                let mut params = CertificateParams::default();
                params.distinguished_name.push(DnType::CommonName, name);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                let ca = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
                std::fs::write(file.path(), ca.pem()).unwrap();
                let flag = format!("--client-ca={}", file.path().display());
                (Launch::new().flags(&[&flag]).start_with_gateway().await, name.to_owned())
            }
        }
    }
}

/// The CPU time that the sidecar spends on each of `count` connections, one after the other.
async fn cpu_each(sidecar: &SidecarWithGateway, client: &TlsClient, count: u32) -> Duration {
    let before = sidecar.process().cpu();
    for _ in 0..count {
        handshake(client).await;
    }
    (sidecar.process().cpu() - before) / count
}
