//! `loopgate exec`: an entrypoint that gives its command a gateway on 127.0.0.1.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::agent_flags::{Flags, MaybeEmpty, create_runtime, flag_error, maybe_empty, non_empty};
use super::error::Error;
use super::flags::refuse_unknown_variables;
use super::log;
use crate::agent::supervise::{self, Signals, exit_status_of};
use crate::agent::{self, Agent};
use crate::config::parse;
use crate::error_chain::error_chain;
use crate::openclaw::device::{self, Device};
use crate::openclaw::{pair, ready};
use crate::secret::Secret;
use crate::shutdown::Shutdown;

/// Runs a command that finds the gateway on 127.0.0.1
///
/// The command's environment gets OPENCLAW_GATEWAY_PORT and, if it is inherited,
/// OPENCLAW_GATEWAY_TOKEN; OPENCLAW_GATEWAY_URL is removed from it. Signals are passed on to the
/// command. The exit status is that of the command, or 128 plus the number of the signal that
/// killed it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Give up, with exit status 1, if the gateway does not answer within this time [default: 60s]
    #[arg(long, env = "LOOPGATE_WAIT", value_name = "DURATION", value_parser = maybe_empty(parse::timeout))]
    wait: Option<MaybeEmpty<Duration>>,
    /// Kill the command this long after a SIGTERM that it ignores [default: 10s]
    #[arg(long, env = "LOOPGATE_GRACE", value_name = "DURATION", value_parser = maybe_empty(parse::duration))]
    grace: Option<MaybeEmpty<Duration>>,
    /// A further variable that gets the gateway's URL, ws://127.0.0.1:PORT; may be repeated
    #[arg(
        long = "env",
        env = "LOOPGATE_ENV",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = parse_variable_name
    )]
    variables: Vec<String>,
    /// Do not pair OpenClaw's device identity in advance, which OpenClaw 2026.2 needs
    #[arg(long, env = "LOOPGATE_NO_PAIR", value_parser = clap::builder::FalseyValueParser::new())]
    no_pair: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn parse_variable_name(name: &str) -> Result<String, String> {
    let legal = !name.is_empty() && !name.contains('=') && !name.contains('\0');
    if legal { Ok(name.into()) } else { Err("is not the name of an environment variable".into()) }
}

/// The default of `--wait`.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// The default of `--grace`.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// The time that open connections get to end after the command has ended.
const DRAIN: Duration = Duration::from_millis(200);

/// Runs the command, and returns its exit status.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    refuse_unknown_variables()?;
    // Only warnings are logged, because standard error belongs to the command.
    log::init(&args.flags.log_options("warn"))?;
    let port = match std::env::var("OPENCLAW_GATEWAY_PORT").ok().filter(|port| !port.is_empty()) {
        Some(port) => Some(
            parse::number(1..=u16::MAX)(&port)
                .map_err(|message| flag_error("OPENCLAW_GATEWAY_PORT", &format!("{port:?} {message}")))?,
        ),
        None => None,
    };
    let settings = args.flags.settings(port)?;
    let wait_limit = non_empty(args.wait).unwrap_or(DEFAULT_WAIT);
    let grace = non_empty(args.grace).unwrap_or(DEFAULT_GRACE);
    let status = create_runtime()?.block_on(async {
        let mut signals = Signals::install().map_err(Error::io("installing the signal handlers"))?;
        let shutdown = Shutdown::new();
        let agent = agent::start(settings, &shutdown).await?;
        let pair = !args.no_pair && !is_node_host(&args.command);
        tokio::select! {
            ready = wait_until_ready(&agent, wait_limit, pair) => ready?,
            signal = signals.wait_for_termination() => return Ok(exit_status_of(signal)),
        }
        let token = agent.state.borrow().token.clone();
        let command = build_command(&args.command, &args.variables, agent.address, token.as_ref());
        let status = supervise::run_command(command, &mut signals, grace).await?;
        shutdown.begin();
        shutdown.wait_for_tasks(DRAIN).await;
        Ok::<_, Error>(status)
    })?;
    Ok(status.into())
}

/// Waits until the gateway answers, and pairs OpenClaw's device in advance if this version of the
/// gateway needs it.
async fn wait_until_ready(agent: &Agent, wait_limit: Duration, pair: bool) -> Result<(), Error> {
    let answers = ready::wait_until_ready(agent.address, wait_limit)
        .await
        .map_err(|error| agent.not_ready_error(wait_limit, error))?;
    info!(address = %agent.address, "the gateway answers");
    if pair && answers.needs_prepairing {
        let inherited = agent.state.borrow().token.clone();
        let token = inherited.or_else(|| {
            std::env::var("OPENCLAW_GATEWAY_TOKEN").ok().filter(|token| !token.is_empty()).map(Secret::new)
        });
        pre_pair(agent.address, token.as_ref()).await;
    }
    Ok(())
}

/// Pairs OpenClaw's device in advance. A failure is only logged, because not every command needs
/// the pairing.
async fn pre_pair(address: SocketAddr, token: Option<&Secret>) {
    let Some(location) =
        device::IdentityLocation::find(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    else {
        return;
    };
    let device = match location {
        device::IdentityLocation::Existing(path) => tokio::task::spawn_blocking(move || Device::read(&path)).await,
        device::IdentityLocation::ToCreate(path) => tokio::task::spawn_blocking(move || Device::create(&path)).await,
    };
    let device = match device.expect("reading a file does not panic") {
        Ok(device) => device,
        Err(error) => {
            return warn!(
                error = %error_chain(&error),
                "can't read the OpenClaw device identity; it will not be paired in advance, and the gateway \
                 may refuse it with 1008 (pairing required)"
            );
        }
    };
    match pair::pair(address, &device, token).await {
        Ok(paired) => {
            debug!(device = paired.device, scopes = paired.scopes.join(","), "paired the OpenClaw device in advance")
        }
        Err(error) => {
            warn!(
                error = %error_chain(&error),
                "can't pair the OpenClaw device in advance; the gateway may refuse it with 1008 (pairing required)"
            )
        }
    }
}

/// Returns whether `command` is `openclaw node run`, for which the device must not be paired in
/// advance: a node host uses the same device identity as the CLI, and a device that was first
/// paired as an operator can't become a node without a human's approval.
fn is_node_host(command: &[OsString]) -> bool {
    command.windows(2).any(|words| words[0] == "node" && words[1] == "run")
}

/// Returns the command of `words`, with the environment variables by which OpenClaw finds the
/// gateway at `address`.
fn build_command(words: &[OsString], variables: &[String], address: SocketAddr, token: Option<&Secret>) -> Command {
    let mut command = Command::new(PathBuf::from(&words[0]));
    command
        .args(&words[1..])
        .env_remove("OPENCLAW_GATEWAY_URL")
        .env("OPENCLAW_GATEWAY_PORT", address.port().to_string());
    for name in variables {
        command.env(name, format!("ws://{address}"));
    }
    if let Some(token) = token {
        command.env("OPENCLAW_GATEWAY_TOKEN", token.expose());
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_host_is_recognised() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (text, expected) in [
            ("openclaw node run --host 127.0.0.1", true),
            ("node /app/openclaw.mjs node run", true),
            ("node /app/openclaw.mjs health", false),
            ("node", false),
        ] {
            assert_eq!(is_node_host(&words(text)), expected, "{text}");
        }
    }

    #[test]
    fn the_environment_is_what_openclaws_clients_read() {
        let token = Secret::new("my-token".to_owned());
        let words = ["true".into()];
        let command = build_command(&words, &["GATEWAY".into()], "127.0.0.1:3000".parse().unwrap(), Some(&token));
        let mut variables: Vec<_> =
            command.get_envs().map(|(k, v)| (k.to_str().unwrap(), v.map(|v| v.to_str().unwrap()))).collect();
        variables.sort_unstable();
        let expected = [
            ("GATEWAY", Some("ws://127.0.0.1:3000")),
            ("OPENCLAW_GATEWAY_PORT", Some("3000")),
            ("OPENCLAW_GATEWAY_TOKEN", Some("my-token")),
            ("OPENCLAW_GATEWAY_URL", None),
        ];
        assert_eq!(variables, expected);
    }
}
