//! Where log lines go, and what they look like.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// What is logged from now on, for whoever may change it.
pub struct Level(Box<dyn Fn(EnvFilter)>);

impl Level {
    /// Logs at `log.level` from now on.
    pub fn set(&self, log: &Log) {
        (self.0)(filter(log));
    }
}

fn filter(log: &Log) -> EnvFilter {
    // It was checked with the configuration; should it be wrong after all, an operator still needs to see what matters.
    EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sends log lines to standard error from now on. A second call changes nothing.
pub fn init(log: &Log) -> Level {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(log))
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        // It would report a broken standard error on standard error, by a macro that panics there.
        .log_internal_errors(false);
    match log.format {
        LogFormat::Text => {
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            Level(Box::new(move |filter| drop(handle.reload(filter))))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            Level(Box::new(move |filter| drop(handle.reload(filter))))
        }
    }
}
