//! The self-check: what each client must look like from the gateway's side, and whether it does.

use std::net::{Ipv4Addr, SocketAddr};

use super::client::{Client, Way};
use super::judge::Judgement;
use super::told::Told;
use super::{AGENT, Error, OUTSIDER};
use crate::config::Config;
use crate::error_chain::error_chain;

/// Which lane a client is to be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Agent,
    External,
}

impl Lane {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::External => "external",
        }
    }

    /// The address that its clients come from.
    pub(super) fn client(self) -> Ipv4Addr {
        match self {
            Self::Agent => AGENT,
            Self::External => OUTSIDER,
        }
    }
}

/// Fields that a client sends in the hope to be taken for somebody else.
type Forged = &'static [(&'static str, &'static str)];

/// What a client of the external lane may try, on its own and all together.
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

/// One client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) lane: Lane,
    pub(super) way: Way,
    pub(super) forged: Forged,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) trial: Trial,
    /// What the gateway was told, if there was an answer.
    pub(super) told: Option<Told>,
    /// What was not as it must be.
    pub(super) objections: Vec<String>,
}

/// How all went.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// How many did not hold.
    pub(super) fn failed(&self) -> usize {
        self.rows.iter().filter(|row| !row.objections.is_empty()).count()
    }

    /// Whether everything held. What was not tried did not.
    pub(super) fn verdict(&self) -> Result<(), Error> {
        let (failed, all) = (self.failed(), self.rows.len());
        if all > 0 && failed == 0 { Ok(()) } else { Err(Error::NotHeld { failed, all }) }
    }
}

/// Tries every client, one after the other.
pub(super) async fn run(client: &Client, config: &Config) -> Report {
    let mut rows = Vec::new();
    for trial in trials() {
        rows.push(match client.ask(trial.lane.client(), trial.way, trial.forged).await {
            Ok(told) => Row { trial, objections: objections(&trial, &told, &client.authority(), config), told: Some(told) },
            Err(error) => Row { trial, objections: vec![error_chain(&error)], told: None },
        });
    }
    Report { rows }
}

fn trials() -> Vec<Trial> {
    let honest = [Lane::Agent, Lane::External].into_iter().flat_map(|lane| Way::ALL.map(|way| Trial { lane, way, forged: &[] }));
    let forged = FORGED.into_iter().flat_map(|forged| {
        // One field at a time in plain HTTP, and all of them in every other protocol.
        let ways: &[Way] = if forged.len() == 1 { &[Way::Http1] } else { &Way::ALL };
        ways.iter().map(move |way| Trial { lane: Lane::External, way: *way, forged })
    });
    honest.chain(forged).collect()
}

/// What `told` should say of `trial` and does not; `door` is the host that an honest client names.
fn objections(trial: &Trial, told: &Told, door: &str, config: &Config) -> Vec<String> {
    let mut objections = Vec::new();
    let mut expect = |what: &str, holds: bool, expected: String, is: String| {
        if !holds {
            objections.push(format!("{what} must be {expected}, but is {is}"));
        }
    };
    let asked = trial.forged.iter().find(|(name, _)| *name == "Host").map_or(door, |(_, host)| host);
    // The outsider's own address is a loopback one, which the gateway must never be told.
    let stated = config.external.unknown_client.to_string();
    let (source, host, attribution, judged) = match trial.lane {
        Lane::Agent => (config.gateway.agent_sources, config.gateway.address.to_string(), vec![], Judgement::Local),
        Lane::External => {
            let attribution = vec![("x-forwarded-for", stated.as_str()), ("x-forwarded-host", asked), ("x-forwarded-proto", "https")];
            (config.gateway.external_source.into(), asked.to_owned(), attribution, Judgement::Remote)
        }
    };
    let from_source = matches!(told.from, SocketAddr::V4(from) if source.contains(from.ip()));
    expect("the source address", from_source, source.to_string(), told.from.ip().to_string());
    let hosts = told.all("host");
    expect("Host", hosts == [host.as_str()], host.clone(), hosts.join(" and "));
    let is = told.attribution();
    expect("what says who it is", is == attribution, fields(&attribution), fields(&is));
    expect("the judgement", told.judged == judged, judged.label().into(), told.judged.label().into());
    objections
}

fn fields(fields: &[(&str, &str)]) -> String {
    if fields.is_empty() {
        return "nothing".into();
    }
    fields.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(from: &str, headers: &[(&str, &str)], judged: Judgement) -> Told {
        Told {
            from: from.parse().unwrap(),
            method: "GET".into(),
            target: "/json".into(),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            judged,
            because: String::new(),
        }
    }

    #[test]
    fn whatever_a_lane_must_not_look_like_is_objected_to() {
        let config = Config::default();
        let (gateway, door) = (config.gateway.address.to_string(), "127.0.0.1:8443");
        let whole = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https"), ("x-forwarded-host", door), ("host", door)];
        let agents = [("host", gateway.as_str()), ("accept", "*/*")];
        let external = |more: &[(&'static str, &'static str)]| [&whole[..], more].concat();
        for (lane, from, headers, judged, objections_) in [
            (Lane::Agent, "127.77.1.2:1", agents.to_vec(), Judgement::Local, 0),
            (Lane::Agent, "127.0.0.2:1", agents.to_vec(), Judgement::Local, 1),
            (Lane::Agent, "127.77.1.2:1", whole.to_vec(), Judgement::Refused, 3),
            (Lane::Agent, "127.77.1.2:1", vec![], Judgement::Local, 1),
            (Lane::External, "127.0.0.2:1", external(&[]), Judgement::Remote, 0),
            (Lane::External, "127.0.0.2:1", external(&[("tailscale-user-login", "a")]), Judgement::Remote, 1),
            (Lane::External, "127.0.0.2:1", external(&[("x-forwarded-for", "127.0.0.1")]), Judgement::Remote, 1),
            (Lane::External, "127.0.0.2:1", external(&[("host", "localhost")]), Judgement::Remote, 1),
            (Lane::External, "127.0.0.1:1", external(&[]), Judgement::Refused, 2),
            (Lane::External, "127.0.0.2:1", vec![("host", door)], Judgement::Local, 2),
        ] {
            let trial = Trial { lane, way: Way::Http1, forged: &[] };
            let found = objections(&trial, &told(from, &headers, judged), door, &config);
            assert_eq!(found.len(), objections_, "{lane:?} {from} {headers:?}: {found:?}");
        }
    }

    #[test]
    fn a_report_without_a_row_does_not_hold() {
        assert!(Report { rows: vec![] }.verdict().is_err());
    }

    #[test]
    fn every_lane_is_tried_in_every_way() {
        for lane in [Lane::Agent, Lane::External] {
            for way in Way::ALL {
                assert!(trials().iter().any(|trial| trial.lane == lane && trial.way == way), "{lane:?} {way}");
            }
        }
    }
}
