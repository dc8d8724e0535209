//! The Autobahn test suite: what a WebSocket server does behind the sidecar is, case by case, no
//! worse than what it does alone.
//!
//! The fuzzing client speaks no TLS, so that its bytes go through a bridge, which wraps them in TLS
//! and does nothing else.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use loopgate::shutdown::Shutdown;
use tokio::net::TcpListener;

use crate::{output, python, say};
use loopgate_test_support::sidecar::Launch;
use loopgate_test_support::tls_client::TlsClient;

/// Everything about the protocol; of the cases about compression, which take their time, a [`SAMPLE`] of each kind.
const CASES: &[&str] = &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"];
const SAMPLE: &[&str] =
    &["12.1.1", "12.1.5", "12.2.1", "12.3.1", "12.4.1", "12.5.1", "13.1.1", "13.3.1", "13.5.1", "13.7.1"];
const ALL: &[&str] = &["12.*", "13.*"];
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suites/autobahn.py");

/// What Autobahn says of a case: of its messages, and of its close.
#[derive(Debug)]
struct Verdict {
    behavior: String,
    close: String,
    why: String,
}

impl Verdict {
    /// The smaller the better. What is only informational is neither good nor bad.
    fn rank(&self) -> (usize, usize) {
        let of = |order: &[&str], word: &str| order.iter().position(|known| *known == word).unwrap_or(order.len());
        let informational = |word: &str| if word == "INFORMATIONAL" { "OK".to_owned() } else { word.to_owned() };
        (
            of(&["OK", "NON-STRICT", "UNIMPLEMENTED", "FAILED"], &informational(&self.behavior)),
            of(&["OK", "FAILED BY CLIENT", "WRONG CODE", "UNCLEAN", "FAILED"], &informational(&self.close)),
        )
    }

    fn worse_than(&self, other: &Self) -> bool {
        self.rank().0 > other.rank().0 || self.rank().1 > other.rank().1
    }
}

#[test]
fn no_case_of_autobahn_is_worse_through_loopgate_than_without_it() {
    let Some(python) = python() else { return };
    let (_server, gateway) = Echo::start(&python);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tasks = Shutdown::new();
    let start = |flags: &[&str]| {
        let sidecar = Launch::new().gateway(gateway).flags(flags).start();
        let client = TlsClient::with_ca_file(sidecar.address, &sidecar.ca()).from("127.0.0.3");
        let bridge = runtime.block_on(bridge(client, tasks.clone()));
        (sidecar, bridge)
    };
    let (sidecar, bridge) = start(&[]);
    // Where loopgate reads a client's first message, it offers the gateway no compression.
    let (transparent, compressing) = start(&["--bind-devices", "off"]);

    let all = std::env::var("TEST_AUTOBAHN").is_ok_and(|cases| cases == "all");
    let compressed = if all { ALL } else { SAMPLE };
    let of_both = |plain, compressing| {
        let mut verdicts = cases_of(&python, plain, CASES);
        verdicts.extend(cases_of(&python, compressing, compressed));
        verdicts
    };
    let direct = of_both(gateway, gateway);
    let mut through = of_both(bridge, compressing);
    assert_eq!(direct.keys().collect::<Vec<_>>(), through.keys().collect::<Vec<_>>());
    assert!(direct.len() > 250, "only {} cases ran", direct.len());

    // Cases have deadlines, which a busy machine may miss: what seems worse is looked at again, alone.
    let again: Vec<_> = direct
        .iter()
        .filter(|(case, verdict)| through[*case].worse_than(verdict))
        .map(|(case, _)| case.as_str())
        .collect();
    if !again.is_empty() {
        say(format_args!("  once more: {again:?}"));
        let (compressed, plain): (Vec<_>, Vec<_>) =
            again.into_iter().partition(|case| case.starts_with("12.") || case.starts_with("13."));
        for (bridge, cases) in [(bridge, plain), (compressing, compressed)] {
            if !cases.is_empty() {
                through.extend(cases_of(&python, bridge, &cases));
            }
        }
    }
    let worse: Vec<_> = direct.iter().filter(|(case, verdict)| through[*case].worse_than(verdict)).collect();
    for (case, verdict) in &worse {
        let Verdict { behavior, close, why } = &through[*case];
        say(format_args!(
            "  {case}: {behavior}, {close} ({why}) through loopgate; {}, {} directly",
            verdict.behavior, verdict.close
        ));
    }
    let good =
        |verdicts: &BTreeMap<String, Verdict>| verdicts.values().filter(|verdict| verdict.rank() == (0, 0)).count();
    say(format_args!(
        "  {} cases: {} flawless directly, {} through loopgate",
        direct.len(),
        good(&direct),
        good(&through)
    ));
    assert!(worse.is_empty(), "{} cases are worse through loopgate", worse.len());
    sidecar.stop();
    transparent.stop();
}

/// The echo server, ended on drop.
struct Echo(Child);

impl Echo {
    fn start(python: &Path) -> (Self, SocketAddr) {
        let mut child = Command::new(python).args([SCRIPT, "echo"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        (Self(child), SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap())))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cases_of(python: &Path, server: SocketAddr, cases: &[&str]) -> BTreeMap<String, Verdict> {
    let output = output(Command::new(python).args([SCRIPT, "run", &format!("ws://{server}")]).args(cases));
    let verdicts: Vec<[String; 4]> =
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error} in {output}"));
    verdicts.into_iter().map(|[case, behavior, close, why]| (case, Verdict { behavior, close, why })).collect()
}

/// A listener without TLS in front of the sidecar's.
async fn bridge(client: TlsClient, tasks: Shutdown) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let each = tasks.clone();
    tasks.spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let client = client.clone();
            each.spawn(async move {
                plain.set_nodelay(true).unwrap();
                let mut sealed = client.connect("http/1.1").await.unwrap();
                // However it ended, the fuzzing client has seen it and judges it.
                let _ = tokio::io::copy_bidirectional(&mut plain, &mut sealed).await;
            });
        }
    });
    address
}
