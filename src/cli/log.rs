//! Log lines on standard error, and the audit log.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use super::error::Error;
use crate::audit::{self, AuditLog};
use crate::config::{Log, LogFormat};

/// The log and the audit log of this process, whose options can change while it runs.
pub struct Logging {
    filter: reload::Handle<Targets, Registry>,
    audit: Option<AuditLog>,
}

impl Logging {
    /// Applies `log.level`, and opens the audit log again.
    pub fn update(&self, log: &Log) {
        let _ = self.filter.reload(level_filter(log));
        self.audit.iter().for_each(AuditLog::reopen);
    }

    /// Waits until all audit events are written, for at most a second.
    pub fn flush(&self) {
        self.audit.iter().for_each(AuditLog::flush);
    }
}

fn level_filter(log: &Log) -> Targets {
    // The level was validated with the configuration, so the fallback should never be used.
    let targets: Targets = log.level.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    targets.with_target(audit::TARGET, LevelFilter::OFF)
}

/// Sends log lines to standard error, and audit events to the audit log, from now on. A second call
/// changes nothing.
///
/// # Errors
/// If the audit log can't be opened.
pub fn init(log: &Log) -> Result<Logging, Error> {
    let open = |path: &std::path::PathBuf| {
        AuditLog::open(path).map_err(Error::io(format!("opening the audit log {}", path.display())))
    };
    let audit = log.audit.as_ref().map(open).transpose()?;
    let (filter, handle) = reload::Layer::new(level_filter(log));
    let _ = match audit.clone() {
        // A filter for the whole subscriber costs less than a filter for one layer.
        None => tracing_subscriber::registry().with(filter).with(log_line_layer(log)).try_init(),
        Some(audit) => {
            let audit = audit.with_filter(Targets::new().with_target(audit::TARGET, LevelFilter::INFO));
            tracing_subscriber::registry().with(log_line_layer(log).with_filter(filter)).with(audit).try_init()
        }
    };
    Ok(Logging { filter: handle, audit })
}

/// Returns the layer that writes log lines.
fn log_line_layer<S>(log: &Log) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        // If standard error is broken, the layer would report that with `eprintln!`, which would
        // then panic.
        .log_internal_errors(false);
    match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}
