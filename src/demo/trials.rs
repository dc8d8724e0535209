//! The self-check: clients on each lane send requests, and the gateway must see each client as its
//! lane requires.

use std::net::{Ipv4Addr, SocketAddr};

use super::classify::Class;
use super::client::{RequestProtocol, TrialClient};
use super::error::Error;
use super::received::Received;
use crate::config::Config;
use crate::error_chain::error_chain;
use crate::labels::LaneKind;

/// The loopback address whose clients are agents in the demonstration.
pub(super) const AGENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// The address of the self-check's external client.
const OUTSIDER: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Returns the address that the clients of `lane` come from.
pub(super) fn client_address(lane: LaneKind) -> Ipv4Addr {
    match lane {
        LaneKind::Agent => AGENT,
        LaneKind::External => OUTSIDER,
    }
}

/// Header fields with which a client claims another identity or address.
type Forged = &'static [(&'static str, &'static str)];

/// The forged fields of external clients, one at a time and all together.
const FORGED: [Forged; 5] = [
    &[("X-Forwarded-For", "127.0.0.1")],
    &[("Forwarded", "for=127.0.0.1;host=localhost")],
    &[("Tailscale-User-Login", "admin@example.com")],
    &[("Host", "localhost")],
    &[
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1;host=localhost"),
        ("Tailscale-User-Login", "admin@example.com"),
        ("X-OpenClaw-Scopes", "operator.admin"),
        ("Host", "localhost"),
    ],
];

/// One client and what it sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) lane: LaneKind,
    pub(super) protocol: RequestProtocol,
    pub(super) forged: Forged,
}

/// The result of one trial.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) trial: Trial,
    /// The request as the gateway received it, if there was an answer.
    pub(super) received: Option<Received>,
    /// How the request differs from what the lane requires.
    pub(super) failures: Vec<String>,
}

/// The results of all trials.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// Returns the number of trials that failed.
    pub(super) fn failed_count(&self) -> usize {
        self.rows.iter().filter(|row| !row.failures.is_empty()).count()
    }

    /// Returns an error unless there were trials and all of them passed.
    pub(super) fn check_all_passed(&self) -> Result<(), Error> {
        let (failed, all) = (self.failed_count(), self.rows.len());
        if all > 0 && failed == 0 { Ok(()) } else { Err(Error::ChecksFailed { failed, all }) }
    }
}

/// Runs every trial, one after the other.
pub(super) async fn run(client: &TrialClient, config: &Config) -> Report {
    let mut rows = Vec::new();
    for trial in all_trials() {
        rows.push(match client.send(client_address(trial.lane), trial.protocol, trial.forged).await {
            Ok(received) => Row {
                trial,
                failures: find_failures(&trial, &received, &client.authority(), config),
                received: Some(received),
            },
            Err(error) => Row { trial, failures: vec![error_chain(&error)], received: None },
        });
    }
    Report { rows }
}

/// Returns every combination that is tried: honest requests on both lanes, then forged ones on the
/// external lane.
fn all_trials() -> Vec<Trial> {
    let honest = [LaneKind::Agent, LaneKind::External]
        .into_iter()
        .flat_map(|lane| RequestProtocol::ALL.map(|protocol| Trial { lane, protocol, forged: &[] }));
    let forged = FORGED.into_iter().flat_map(|forged| {
        // One field at a time over HTTP/1.1, and all of them together over each protocol.
        let protocols: &[RequestProtocol] =
            if forged.len() == 1 { &[RequestProtocol::H1] } else { &RequestProtocol::ALL };
        protocols.iter().map(move |protocol| Trial { lane: LaneKind::External, protocol: *protocol, forged })
    });
    honest.chain(forged).collect()
}

/// Returns the differences between `received` and what the lane of `trial` requires. `own_host` is
/// the `Host` of a client that forges no fields.
fn find_failures(trial: &Trial, received: &Received, own_host: &str, config: &Config) -> Vec<String> {
    let mut failures = Vec::new();
    let mut expect = |aspect: &str, holds: bool, expected: String, actual: String| {
        if !holds {
            failures.push(format!("{aspect} must be {expected}, but is {actual}"));
        }
    };
    let requested_host = trial.forged.iter().find(|(name, _)| *name == "Host").map_or(own_host, |(_, host)| host);
    // The client's own address is a loopback address, which is never stated to the gateway.
    let stated = config.external.unknown_client.to_string();
    let (source, host, attribution, class) = match trial.lane {
        LaneKind::Agent => (config.gateway.agent_sources, config.gateway.address.to_string(), vec![], Class::Local),
        LaneKind::External => {
            let attribution = vec![
                ("x-forwarded-for", stated.as_str()),
                ("x-forwarded-host", requested_host),
                ("x-forwarded-proto", "https"),
            ];
            (config.gateway.external_source.into(), requested_host.to_owned(), attribution, Class::Remote)
        }
    };
    let from_source = matches!(received.from, SocketAddr::V4(from) if source.contains(from.ip()));
    expect("the source address", from_source, source.to_string(), received.from.ip().to_string());
    let hosts = received.values_of("host");
    expect("Host", hosts == [host.as_str()], host.clone(), hosts.join(" and "));
    let actual = received.attribution_fields();
    expect(
        "the headers that name the client",
        actual == attribution,
        format_fields(&attribution),
        format_fields(&actual),
    );
    expect("the class", received.class == class, class.label().into(), received.class.label().into());
    failures
}

fn format_fields(fields: &[(&str, &str)]) -> String {
    if fields.is_empty() {
        return "nothing".into();
    }
    fields.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(from: &str, headers: &[(&str, &str)], class: Class) -> Received {
        Received {
            from: from.parse().unwrap(),
            method: "GET".into(),
            target: "/json".into(),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            class,
            reason: String::new(),
        }
    }

    #[test]
    fn each_difference_from_the_lane_is_a_failure() {
        let config = Config::default();
        let (gateway, host) = (config.gateway.address.to_string(), "127.0.0.1:8443");
        let whole = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", host),
            ("host", host),
        ];
        let agents = [("host", gateway.as_str()), ("accept", "*/*")];
        let external = |more: &[(&'static str, &'static str)]| [&whole[..], more].concat();
        for (lane, from, headers, judged, failure_count) in [
            (LaneKind::Agent, "127.77.1.2:1", agents.to_vec(), Class::Local, 0),
            (LaneKind::Agent, "127.0.0.2:1", agents.to_vec(), Class::Local, 1),
            (LaneKind::Agent, "127.77.1.2:1", whole.to_vec(), Class::Refused, 3),
            (LaneKind::Agent, "127.77.1.2:1", vec![], Class::Local, 1),
            (LaneKind::External, "127.0.0.2:1", external(&[]), Class::Remote, 0),
            (LaneKind::External, "127.0.0.2:1", external(&[("tailscale-user-login", "a")]), Class::Remote, 1),
            (LaneKind::External, "127.0.0.2:1", external(&[("x-forwarded-for", "127.0.0.1")]), Class::Remote, 1),
            (LaneKind::External, "127.0.0.2:1", external(&[("host", "localhost")]), Class::Remote, 1),
            (LaneKind::External, "127.0.0.1:1", external(&[]), Class::Refused, 2),
            (LaneKind::External, "127.0.0.2:1", vec![("host", host)], Class::Local, 2),
        ] {
            let trial = Trial { lane, protocol: RequestProtocol::H1, forged: &[] };
            let found = find_failures(&trial, &received(from, &headers, judged), host, &config);
            assert_eq!(found.len(), failure_count, "{lane:?} {from} {headers:?}: {found:?}");
        }
    }

    #[test]
    fn a_report_without_rows_is_a_failure() {
        assert!(Report { rows: vec![] }.check_all_passed().is_err());
    }

    #[test]
    fn every_lane_is_tried_in_every_way() {
        for lane in [LaneKind::Agent, LaneKind::External] {
            for protocol in RequestProtocol::ALL {
                assert!(
                    all_trials().iter().any(|trial| trial.lane == lane && trial.protocol == protocol),
                    "{lane:?} {protocol}"
                );
            }
        }
    }
}
