//! Where log lines go, and what they look like.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// What is logged from now on, for whoever may change it.
pub struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// Logs at `log.level` from now on.
    pub fn set(&self, log: &Log) {
        let _ = self.0.reload(filter(log));
    }
}

fn filter(log: &Log) -> Targets {
    // It was checked with the configuration; should it be wrong after all, an operator still needs to see what matters.
    log.level.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO))
}

/// Sends log lines to standard error from now on. A second call changes nothing.
pub fn init(log: &Log) -> Level {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (filter, handle) = reload::Layer::new(filter(log));
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        // It would report a broken standard error on standard error, by a macro that panics there.
        .log_internal_errors(false);
    let _ = match log.format {
        LogFormat::Text => tracing_subscriber::registry().with(filter).with(lines).try_init(),
        LogFormat::Json => tracing_subscriber::registry().with(filter).with(lines.json().flatten_event(true)).try_init(),
    };
    Level(handle)
}
