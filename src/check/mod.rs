//! `loopgate check`: examines the running system, and reports what is wrong and what to do about
//! it.
//!
//! Probes collect observations, and pure `judge` functions derive the findings from them. No probe
//! changes anything.

pub mod agents;
pub mod catalogue;
pub mod certificate;
pub mod docker;
mod docker_probe;
pub mod finding;
pub mod fix;
pub mod gateway;
pub mod gateway_command;
pub mod gateway_files;
pub mod kubernetes;
mod kubernetes_probe;
pub mod namespace;
pub mod openclaw_config;
pub mod own_device;
pub mod paths;
pub mod port_forwards;
pub mod setup_code;
pub mod sidecar;
pub mod state_dir;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::admin::client;
use crate::admin::status::Status;
use crate::config::{AgentSourceKind, Config};
use crate::discovery::docker::engine::Engine;
use crate::discovery::kubernetes::api::Api;
use crate::discovery::{self, View};
use crate::error_chain::error_chain;
use crate::fingerprint::Fingerprint;
use crate::lane::LanePolicy;
use crate::listener::reachable_addresses;
use crate::metrics;
use crate::openclaw::files;
use crate::openclaw::probe::{self, Server};
use crate::pki::{SubjectName, offline};
use crate::shutdown::Shutdown;

pub use finding::{Finding, Remedy, Report, Severity};

/// The time limit for the first list of discovery.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// The default port of HTTPS, which browsers omit from an origin.
const HTTPS: u16 = 443;

/// Runs all checks on a new runtime. Blocks.
///
/// # Errors
/// If the runtime can't be created.
pub fn run(config: &Config, openclaw_config: Option<&Path>) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = config.admin.map(|admin| client::fetch_status(admin).map_err(|error| error_chain(&error)));
    let file = openclaw_config_path(config, openclaw_config);
    Ok(runtime.block_on(collect_findings(config, file.as_deref(), status)))
}

/// Returns the path of the gateway's configuration file: `named`, or else the `openclaw.json` in
/// `gateway.state_dir`, if it exists. Blocks.
pub fn openclaw_config_path(config: &Config, named: Option<&Path>) -> Option<PathBuf> {
    let in_state_dir = || {
        config.gateway.state_dir.as_ref().map(|directory| directory.join("openclaw.json")).filter(|file| file.is_file())
    };
    named.map(Path::to_path_buf).or_else(in_state_dir)
}

/// Runs all probes, and judges what they observe. Discovery runs meanwhile. `file` is the gateway's
/// configuration file. `status` is the status of the running sidecar, or the error if it could not
/// be fetched; `None` if there is no admin listener.
async fn collect_findings(config: &Config, file: Option<&Path>, status: Option<Result<Status, String>>) -> Report {
    let mut report = Report::default();
    let shutdown = Shutdown::new();
    let engine = discovery::docker_engine(config, &shutdown);
    let mut views = discovery::start(config, engine.clone(), &metrics::DiscoveryMetrics::default(), &shutdown);
    discovery::wait_until_ready(&mut views, DISCOVERY_TIMEOUT).await;
    let view = Arc::clone(&views.borrow());

    examine_gateway(config, file, &view, status.as_ref(), &mut report).await;
    if let Some(status) = &status {
        sidecar::judge(status, &mut report);
    }
    examine_discovery(config, engine.as_ref(), &view, &mut report).await;
    let running = status.as_ref().and_then(|status| status.as_ref().ok());
    namespace::judge(&namespace::observe(config, &view, running), &mut report);
    paths::judge(&config.external, config.gateway.address.port(), &mut report);
    shutdown.begin();

    certificate::judge(&observe_certificate(config, &view, status.as_ref()), &mut report);
    state_dir::judge(&state_dir::inspect(&config.state_dir), &mut report);
    report.sort_by_severity();
    report
}

/// Adds the findings about the gateway, its configuration `file` and its other files.
async fn examine_gateway(
    config: &Config,
    file: Option<&Path>,
    view: &View,
    status: Option<&Result<Status, String>>,
    report: &mut Report,
) {
    let openclaw_json = openclaw_config::read(file);
    openclaw_config::judge_unread_file(openclaw_json.as_ref().map(|_| ()), report);
    let openclaw_json = openclaw_json.ok();
    let plan = gateway_probe_plan(config, view, status, openclaw_json.as_ref());
    let observation = probe::probe(&plan).await;
    gateway::judge(&observation, report);
    let bind = openclaw_json.as_ref().and_then(|openclaw_json| openclaw_json["gateway"]["bind"].as_str());
    gateway_command::judge_file(bind, !observation.exposed.is_empty(), report);
    if observation.server == Server::Old {
        let directory = file.and_then(Path::parent).or(config.gateway.state_dir.as_deref());
        let keeps_paired = config.gateway.state_dir.is_some();
        let scopes = directory.and_then(files::gateway_device_scopes);
        own_device::judge(&own_device::OwnDeviceObservation { keeps_paired, scopes }, report);
    }
    port_forwards::judge(&port_forwards::probe(config).await, report);
    gateway_files::judge(&files::find_unreadable_files(&config.gateway), report);
    if let Some(openclaw_json) = &openclaw_json {
        let wanted = openclaw_config::Wanted {
            gateway: config.gateway.address,
            external_source: config.gateway.external_source.into(),
            policy: LanePolicy::new(config),
            knows_local_clients: observation.local == probe::Classification::Local,
        };
        openclaw_config::judge(openclaw_json, &wanted, report);
        setup_code::judge(openclaw_json, public_origin(&plan.allowed), report);
    }
}

/// Adds the findings about Docker or Kubernetes, and about the containers or pods there.
async fn examine_discovery(config: &Config, engine: Option<&Engine>, view: &View, report: &mut Report) {
    match config.discovery {
        AgentSourceKind::Docker => docker::judge(&docker_probe::probe(engine, view).await, report),
        AgentSourceKind::Kubernetes => {
            let api = Api::new(&config.kubernetes);
            kubernetes::judge(&kubernetes_probe::probe(&api, view).await, report);
        }
    }
    gateway_command::judge(&docker_probe::containers_in_this_namespace(engine, view).await, report);
    let risks = agents::AddressRisks {
        net_raw: docker_probe::agents_with_net_raw(engine, view).await,
        user_namespace: discovery::is_in_user_namespace(),
    };
    agents::judge(view, &risks, config, report);
}

/// Returns the plan of the gateway's probe.
fn gateway_probe_plan(
    config: &Config,
    view: &View,
    status: Option<&Result<Status, String>>,
    openclaw_json: Option<&Value>,
) -> probe::ProbePlan {
    let running = status.and_then(|status| status.as_ref().ok());
    let chain = config.tls.provided.as_ref().map(|pair| pair.chain.as_path());
    let from_files = || offline::show(&config.state_dir, chain).ok().map(|files| files.server.fingerprint);
    let fingerprint = running.map(|status| status.certificate.fingerprint.clone()).or_else(from_files);
    let allowed = openclaw_json
        .and_then(|openclaw_json| openclaw_json["gateway"]["controlUi"]["allowedOrigins"].as_array())
        .into_iter()
        .flatten();
    let allowed: Vec<String> = allowed.filter_map(Value::as_str).map(Into::into).collect();
    probe::ProbePlan {
        address: config.gateway.address,
        external_source: config.gateway.external_source.into(),
        namespace_addresses: dialled_addresses(view),
        sidecar: fingerprint.and_then(|fingerprint| fingerprint.parse::<Fingerprint>().ok()),
        origins: browser_origins(config, &allowed),
        allowed,
    }
}

/// Returns the origins of the pages that browsers may open at the names in `tls.names`. Names
/// without a dot are left out, because only other containers use them.
///
/// The port that is published for a name is not known here. If the gateway allows an origin with
/// that name and some port, that port is assumed, else the port of `listen.on`.
fn browser_origins(config: &Config, allowed: &[String]) -> Vec<String> {
    let is_public = |name: &&String| match name.parse() {
        Ok(SubjectName::Dns(name)) => name.contains('.') && !name.starts_with("*."),
        _ => false,
    };
    let port = config.listen.on.first().map_or(HTTPS, |on| on.port);
    let origins_of_name = |name: &String| {
        let bare = format!("https://{name}");
        let with_port = format!("{bare}:");
        let allowed_already: Vec<String> =
            allowed.iter().filter(|origin| **origin == bare || origin.starts_with(&with_port)).cloned().collect();
        match () {
            () if !allowed_already.is_empty() => allowed_already,
            () if port == HTTPS => vec![bare],
            () => vec![format!("{bare}:{port}")],
        }
    };
    config.tls.names.iter().filter(is_public).flat_map(origins_of_name).collect()
}

/// Returns the origin at which clients from outside reach loopgate: the first `https` origin in
/// `allowed` that has no wildcard, and whose host is not loopback. It is not made from a name in
/// the certificate, because the published port is not known here.
fn public_origin(allowed: &[String]) -> Option<&str> {
    let is_public = |origin: &&str| {
        origin.strip_prefix("https://").is_some_and(|host| {
            !["localhost", "127.", "[::1]"].iter().any(|own| host.starts_with(own)) && !host.contains('*')
        })
    };
    allowed.iter().map(String::as_str).find(is_public)
}

/// Returns the addresses of this namespace that clients may dial: all but link-local ones.
fn dialled_addresses(view: &View) -> Vec<IpAddr> {
    view.non_loopback_addresses().filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())).collect()
}

/// Reads the certificates, and the names that they should have. The names in `tls.names` are not
/// expected of the operator's own pair.
fn observe_certificate(
    config: &Config,
    view: &View,
    status: Option<&Result<Status, String>>,
) -> certificate::CertificateState {
    let own_pair = config.tls.provided.as_ref().map(|pair| pair.chain.as_path());
    let running = status.and_then(|status| status.as_ref().ok());
    let exists = own_pair.is_some() || config.state_dir.join("server.pem").exists();
    let configured_names = if own_pair.is_some() { &[][..] } else { &config.tls.names };
    let addresses = reachable_addresses(&config.listen.on, config.gateway.address, view);
    // Docker accepts network aliases that are not valid as a name in a certificate. They are left
    // out.
    let discovered_names = view
        .own_names
        .iter()
        .filter_map(|name| name.parse::<SubjectName>().ok())
        .chain(addresses.into_iter().map(SubjectName::Ip));
    certificate::CertificateState {
        files: exists.then(|| offline::show(&config.state_dir, own_pair).map_err(|error| error_chain(&error))),
        own_pair: own_pair.is_some(),
        follows_names: config.tls.follow_names,
        wanted: configured_names.iter().cloned().chain(discovered_names.map(|name| name.to_string())).collect(),
        problem: running.and_then(|status| status.certificate.problem.clone()),
        now: format_rfc3339(OffsetDateTime::now_utc()),
    }
}

fn format_rfc3339(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_origin_is_public_unless_it_is_this_machines() {
        let table: [(&[&str], Option<&str>); 4] = [
            (&[], None),
            (
                &["*", "http://gateway.example.com", "https://localhost:18789", "https://127.0.0.1", "https://[::1]:1"],
                None,
            ),
            (&["https://*.example.com"], None),
            (&["https://localhost", "https://gateway.example.com:18789"], Some("https://gateway.example.com:18789")),
        ];
        for (allowed, expected) in table {
            let allowed: Vec<String> = allowed.iter().map(|&origin| origin.into()).collect();
            assert_eq!(public_origin(&allowed), expected, "{allowed:?}");
        }
    }

    #[test]
    fn origins_are_those_that_a_browser_sends() {
        let mut config = Config::default();
        config.tls.names =
            ["gateway.example.com", "*.example.org", "10.0.0.1", "openclaw-gateway"].map(Into::into).into();
        let allowed = |origins: &[&str]| origins.iter().map(|&origin| origin.into()).collect::<Vec<String>>();
        assert_eq!(browser_origins(&config, &[]), ["https://gateway.example.com:18443"]);
        assert_eq!(
            browser_origins(&config, &allowed(&["https://gateway.example.com:18789", "https://x"])),
            ["https://gateway.example.com:18789"]
        );
        assert_eq!(
            browser_origins(&config, &allowed(&["https://gateway.example.com.evil"])),
            ["https://gateway.example.com:18443"]
        );
        config.listen.on[0].port = 443;
        assert_eq!(browser_origins(&config, &[]), ["https://gateway.example.com"]);
    }
}
