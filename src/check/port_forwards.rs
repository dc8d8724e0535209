//! Findings about the further ports of the gateway that loopgate forwards to (`listen.forward`).

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::config::{Config, PortForward};

/// The time limit for connecting to a port.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A port forward, the address that it leads to, and the error of a connection to that address, if
/// any.
pub type PortForwardProbe = (PortForward, SocketAddr, Option<String>);

/// Connects to the target of each port forward.
pub async fn probe(config: &Config) -> Vec<PortForwardProbe> {
    let each = config.listen.forward.iter().map(|forward| async move {
        let target = SocketAddr::new(config.gateway.address.ip(), forward.target);
        let error = match timeout(TIMEOUT, TcpStream::connect(target)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {TIMEOUT:?}")),
        };
        (*forward, target, error)
    });
    join_all(each).await
}

/// Adds the findings about port forwards.
pub fn judge(observations: &[PortForwardProbe], report: &mut Report) {
    for (forward, target, error) in observations {
        match error {
            None => report.add_passed("forward", format!("{target} answers (--forward {forward})")),
            Some(error) => {
                let remedy = Remedy::in_words(
                    "start what listens there, in the gateway's network namespace and on loopback, or take the port \
                     out of listen.forward",
                );
                report.add_finding(&kind::FORWARD_DOWN, format!("{target}: {error} (--forward {forward})"), remedy);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_does_not_answer_is_named() {
        let forward = |port, target| PortForward { port, target };
        let cases = [
            (forward(18793, 18793), "127.0.0.1:18793".parse().unwrap(), None),
            (forward(9000, 3334), "127.0.0.1:3334".parse().unwrap(), Some("connection refused".to_owned())),
        ];
        let mut report = Report::default();
        judge(&cases, &mut report);
        assert_eq!(report.ids(), ["forward-down"]);
        assert_eq!(report.findings[0].seen, ["127.0.0.1:3334: connection refused (--forward 9000:3334)"]);
        assert_eq!(report.passed[0].seen, "127.0.0.1:18793 answers (--forward 18793)");
    }
}
