//! The Autobahn test suite: in each case, a WebSocket server behind the sidecar gets a verdict no
//! worse than without the sidecar.
//!
//! The fuzzing client has no TLS, so it connects to a bridge, which forwards its bytes over TLS.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use loopgate::shutdown::Shutdown;
use tokio::net::TcpListener;

use crate::{output, print_now, python};
use loopgate_test_support::sidecar::Launch;
use loopgate_test_support::tls_client::TlsClient;

/// All cases that are not about compression.
const CASES: &[&str] = &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"];
/// A few cases about compression. All of them take long, so they run only with `TEST_AUTOBAHN=all`.
const SAMPLE: &[&str] =
    &["12.1.1", "12.1.5", "12.2.1", "12.3.1", "12.4.1", "12.5.1", "13.1.1", "13.3.1", "13.5.1", "13.7.1"];
/// All cases about compression.
const ALL: &[&str] = &["12.*", "13.*"];
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suites/autobahn.py");

/// Autobahn's verdicts on a case: on its messages, and on the close of its connection.
#[derive(Debug)]
struct Verdict {
    behavior: String,
    close: String,
    why: String,
}

impl Verdict {
    /// Ranks both verdicts; smaller is better. INFORMATIONAL counts as OK.
    fn rank(&self) -> (usize, usize) {
        let of = |order: &[&str], word: &str| order.iter().position(|known| *known == word).unwrap_or(order.len());
        let informational = |word: &str| if word == "INFORMATIONAL" { "OK".to_owned() } else { word.to_owned() };
        (
            of(&["OK", "NON-STRICT", "UNIMPLEMENTED", "FAILED"], &informational(&self.behavior)),
            of(&["OK", "FAILED BY CLIENT", "WRONG CODE", "UNCLEAN", "FAILED"], &informational(&self.close)),
        )
    }

    fn is_worse_than(&self, other: &Self) -> bool {
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
        let client = TlsClient::with_ca_file(sidecar.address, &sidecar.ca_file()).from("127.0.0.3");
        let bridge = runtime.block_on(bridge(client, tasks.clone()));
        (sidecar, bridge)
    };
    let (sidecar, bridge) = start(&[]);
    // loopgate reads the first message of a WebSocket to bind devices, and therefore offers the
    // gateway no compression. The cases about compression need a sidecar that doesn't.
    let (transparent, compressing) = start(&["--bind-devices", "off"]);

    let runs_all = std::env::var("TEST_AUTOBAHN").is_ok_and(|cases| cases == "all");
    let compressed = if runs_all { ALL } else { SAMPLE };
    let run_all = |plain, compressing| {
        let mut verdicts = verdicts_on(&python, plain, CASES);
        verdicts.extend(verdicts_on(&python, compressing, compressed));
        verdicts
    };
    let direct = run_all(gateway, gateway);
    let mut through = run_all(bridge, compressing);
    assert_eq!(direct.keys().collect::<Vec<_>>(), through.keys().collect::<Vec<_>>());
    assert!(direct.len() > 250, "only {} cases ran", direct.len());

    // Cases have deadlines, which a busy machine may miss, so the worse cases run a second time.
    let again: Vec<_> = direct
        .iter()
        .filter(|(case, verdict)| through[*case].is_worse_than(verdict))
        .map(|(case, _)| case.as_str())
        .collect();
    if !again.is_empty() {
        print_now(format_args!("  second run: {again:?}"));
        let (compressed, plain): (Vec<_>, Vec<_>) =
            again.into_iter().partition(|case| case.starts_with("12.") || case.starts_with("13."));
        for (bridge, cases) in [(bridge, plain), (compressing, compressed)] {
            if !cases.is_empty() {
                through.extend(verdicts_on(&python, bridge, &cases));
            }
        }
    }
    let worse: Vec<_> = direct.iter().filter(|(case, verdict)| through[*case].is_worse_than(verdict)).collect();
    for (case, verdict) in &worse {
        let Verdict { behavior, close, why } = &through[*case];
        print_now(format_args!(
            "  {case}: {behavior}, {close} ({why}) through loopgate; {}, {} directly",
            verdict.behavior, verdict.close
        ));
    }
    let count_flawless =
        |verdicts: &BTreeMap<String, Verdict>| verdicts.values().filter(|verdict| verdict.rank() == (0, 0)).count();
    print_now(format_args!(
        "  {} cases: {} flawless directly, {} through loopgate",
        direct.len(),
        count_flawless(&direct),
        count_flawless(&through)
    ));
    assert!(worse.is_empty(), "{} cases are worse through loopgate", worse.len());
    sidecar.stop();
    transparent.stop();
}

/// The echo server's process. Dropping it ends the process.
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

/// Runs these cases against `server`, and returns their verdicts.
fn verdicts_on(python: &Path, server: SocketAddr, cases: &[&str]) -> BTreeMap<String, Verdict> {
    let output = output(Command::new(python).args([SCRIPT, "run", &format!("ws://{server}")]).args(cases));
    let verdicts: Vec<[String; 4]> =
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error} in {output}"));
    verdicts.into_iter().map(|[case, behavior, close, why]| (case, Verdict { behavior, close, why })).collect()
}

/// Starts a plain-text listener that forwards connections over TLS; returns its address.
async fn bridge(client: TlsClient, tasks: Shutdown) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = tasks.clone();
    tasks.spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let client = client.clone();
            connections.spawn(async move {
                plain.set_nodelay(true).unwrap();
                let mut tls = client.connect("http/1.1").await.unwrap();
                // An error needs no handling, because the fuzzing client sees it and judges it.
                let _ = tokio::io::copy_bidirectional(&mut plain, &mut tls).await;
            });
        }
    });
    address
}
