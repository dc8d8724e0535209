//! `loopgate agent`.

use std::time::Duration;

use tracing::info;

use super::agent_flags::{Flags, MaybeEmpty, create_runtime, maybe_empty, non_empty};
use super::error::Error;
use super::flags::refuse_unknown_variables;
use super::log;
use crate::agent::{self, supervise::Signals};
use crate::config::parse;
use crate::openclaw::ready;
use crate::shutdown::Shutdown;

/// Gives this container's programs the gateway on 127.0.0.1
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Give up, with exit status 1, if the gateway does not answer within this time of the start
    #[arg(long, env = "LOOPGATE_WAIT", value_name = "DURATION", value_parser = maybe_empty(parse::timeout))]
    wait: Option<MaybeEmpty<Duration>>,
}

/// The time that open connections get to end after a signal.
const DRAIN: Duration = Duration::from_secs(2);

/// Relays connections until a signal stops it.
pub fn run(args: Args) -> Result<(), Error> {
    refuse_unknown_variables()?;
    log::init(&args.flags.log_options("info"))?;
    let settings = args.flags.settings(None)?;
    let wait = non_empty(args.wait);
    create_runtime()?.block_on(async {
        let mut signals = Signals::install().map_err(Error::io("installing the signal handlers"))?;
        let shutdown = Shutdown::new();
        let agent = agent::start(settings, &shutdown).await?;
        if let Some(wait_limit) = wait {
            tokio::select! {
                answers = ready::wait_until_ready(agent.address, wait_limit) => {
                    answers.map_err(|error| agent.not_ready_error(wait_limit, error))?;
                }
                _ = signals.wait_for_termination() => return Ok(()),
            }
            info!("the gateway answers");
        }
        let signal = signals.wait_for_termination().await;
        info!(%signal, "stopping");
        shutdown.begin();
        shutdown.wait_for_tasks(DRAIN).await;
        Ok(())
    })
}
