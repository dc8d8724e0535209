//! Hostile client certificates: a handshake with one costs little more than a normal handshake, and
//! many such handshakes do not keep agents from being served.

use std::time::Duration;

use loopgate_test_support::handshakes::{RunningHandshakes, handshake};
use loopgate_test_support::hostile_chain::{SHAPES, hostile_chain};
use loopgate_test_support::requirements::print_now;
use loopgate_test_support::sidecar::{Launch, SidecarWithGateway};
use loopgate_test_support::tls_client::TlsClient;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::{Bystanders, attack, attackers};

/// Lengths of the chains, in certificates. Chains above the limit of intermediates must cost less.
const LENGTHS: [usize; 6] = [3, 4, 5, 11, 20, 60];
/// The most CPU time that a hostile handshake may cost, as a multiple of a normal handshake's.
const MAX_RATIO: f64 = 3.0;
/// The number of handshakes with each chain whose CPU time is measured.
const SAMPLES: u32 = 25;

#[test]
fn hostile_chains_cost_at_most_three_times_a_normal_handshake() {
    attack("hostile chains: CPU time", || async {
        for option in [CertificateOption::CertificateFrom, CertificateOption::ClientCa] {
            let (sidecar, name) = option.start().await;
            let client = sidecar.without_tickets();
            cpu_per_handshake(&sidecar, &client, 20).await;
            let normal = cpu_per_handshake(&sidecar, &client, 4 * SAMPLES).await;
            print_now(format_args!("  {option:?}: a handshake {normal:.2?}"));
            let mut worst = 0.0_f64;
            for shape in SHAPES {
                let mut line = Vec::new();
                for length in LENGTHS {
                    let (chain, key) = hostile_chain(shape, length, &name);
                    let hostile = client.with_certificate(chain, key).without_tickets();
                    let ratio =
                        cpu_per_handshake(&sidecar, &hostile, SAMPLES).await.as_secs_f64() / normal.as_secs_f64();
                    worst = worst.max(ratio);
                    line.push(format!("{length} certificates {ratio:.2}"));
                }
                print_now(format_args!("  {shape:?}, as multiples of that: {}", line.join(", ")));
            }
            assert!(worst <= MAX_RATIO, "{option:?}: a hostile chain costs {worst:.2} handshakes");
        }
    });
}

#[test]
fn agents_are_served_during_hostile_chains_from_a_hundred_addresses() {
    attack("hostile chains: 30 a second from one address and 300 a second from a hundred", || async {
        let (sidecar, name) = CertificateOption::CertificateFrom.start().await;
        let hostile: Vec<TlsClient> = SHAPES
            .into_iter()
            .flat_map(|shape| LENGTHS.map(|length| hostile_chain(shape, length, &name)))
            .map(|(chain, key)| sidecar.with_certificate(chain, key).without_tickets())
            .collect();
        let from_one = RunningHandshakes::start(hostile.clone(), vec!["127.0.0.5".into()], 30);
        let from_many = RunningHandshakes::start(hostile, attackers(100), 300);
        let bystanders = Bystanders::measure(&sidecar, Duration::from_secs(6)).await;
        print_now(format_args!("  {} hostile handshakes", from_one.count() + from_many.count()));
        assert!(from_one.count() + from_many.count() > 200, "too few hostile handshakes ended");
        assert!(
            sidecar.gateway.requests().iter().all(|request| request.start_line().contains(" / ")),
            "a hostile client reached the gateway"
        );
        bystanders.assert_served();
    });
}

/// The option because of which the sidecar requests a certificate from every client.
#[derive(Debug)]
enum CertificateOption {
    /// `agents.certificate_from`: certificates of loopgate's own CA are accepted.
    CertificateFrom,
    /// `tls.client_ca`: certificates of the CAs in a bundle are accepted too.
    ClientCa,
}

impl CertificateOption {
    /// Starts a sidecar; returns it and the name of a CA whose certificates it accepts.
    async fn start(&self) -> (SidecarWithGateway, String) {
        match self {
            Self::CertificateFrom => {
                let sidecar = Launch::new().flags(&["--certificate-from=127.0.0.0/8"]).start_with_gateway().await;
                let ca = CertificateDer::from_pem_file(sidecar.ca_file()).unwrap();
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

/// Makes `count` handshakes one after the other; returns the sidecar's average CPU time for one.
async fn cpu_per_handshake(sidecar: &SidecarWithGateway, client: &TlsClient, count: u32) -> Duration {
    let before = sidecar.process().cpu_time();
    for _ in 0..count {
        handshake(client).await;
    }
    (sidecar.process().cpu_time() - before) / count
}
