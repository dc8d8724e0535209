//! The audit log (`--audit-log`): enrolments, lane decisions and refusals, one JSON object in each
//! line.
//!
//! Modules emit audit events as `tracing` events with the target [`TARGET`], the field `kind`
//! (`enrolment`, `lane` or `refusal`) and, for a refusal, the field `reason`. [`AuditLog`] writes
//! the events to a file or to standard output, whatever `log.level` is. Log lines exclude the
//! target. No event has a secret, or a path or header of a request.
//!
//! Each combination of kind, reason, lane and outcome has a rate limit, so that a flood of some
//! events neither fills the disk nor hides others. Events above the limit are counted, and the
//! counts are written within ten seconds.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, error};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::token_bucket::{Rate, TokenBucket};

/// The target of audit events.
pub const TARGET: &str = "loopgate::audit";

/// The rate limit of events with equal [`KEY_FIELDS`] fields.
const EVENT_RATE: Rate = Rate { burst: 200, interval: Duration::from_millis(20) };
/// The fields by which events are grouped for the rate limit. A client can't choose their values.
const KEY_FIELDS: [&str; 4] = ["kind", "reason", "lane", "outcome"];
/// The maximum number of groups with a separate limit. Further groups share one limit.
const MAX_KEYS: usize = 256;
/// The maximum number of lines that wait to be written. Further ones are counted as left out.
const QUEUE_LENGTH: usize = 1024;
/// The interval at which the counts of events that were left out are written.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// The time for which [`AuditLog::flush`] waits at most.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// An open audit log. Clones write to the same file.
#[derive(Clone)]
pub struct AuditLog {
    queue: SyncSender<Message>,
    limits: Arc<Mutex<EventLimits>>,
}

enum Message {
    Line(String),
    Reopen,
    Flush(Sender<()>),
}

impl AuditLog {
    /// Opens the file at `path` for appending; `-` means standard output. A new file has mode 0600.
    /// A separate thread writes the lines, so that no caller waits for the disk.
    ///
    /// # Errors
    /// The file can't be opened, or the thread can't be started.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = (path != Path::new("-")).then(|| path.to_owned());
        let output = open_output(path.as_deref())?;
        let (queue, messages) = sync_channel(QUEUE_LENGTH);
        let limits = Arc::new(Mutex::new(EventLimits::default()));
        let writer = Writer { path, output, limits: Arc::clone(&limits) };
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&messages))?;
        Ok(Self { queue, limits })
    }

    /// Opens the file again, after it was renamed by log rotation.
    pub fn reopen(&self) {
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Waits until all earlier events are written, for at most `FLUSH_TIMEOUT`.
    pub fn flush(&self) {
        let (send, written) = channel();
        if self.queue.try_send(Message::Flush(send)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    /// Queues a line with `fields`, unless its group is above the rate limit or the queue is full.
    fn record(&self, mut fields: Map<String, Value>, now: Instant) {
        let key = KEY_FIELDS.map(|name| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned());
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if !limits.try_take(&key, now) {
            return;
        }
        fields.insert("time".into(), current_timestamp().into());
        if self.queue.try_send(Message::Line(Value::Object(fields).to_string())).is_err() {
            limits.count_left_out(&key);
        }
    }
}

impl<S: Subscriber> Layer<S> for AuditLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == TARGET {
            let mut fields = FieldCollector::default();
            event.record(&mut fields);
            self.record(fields.0, Instant::now());
        }
    }
}

/// Collects the fields of an event.
#[derive(Default)]
struct FieldCollector(Map<String, Value>);

impl Visit for FieldCollector {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
}

/// For each group of events, its rate limit, and the number of events that were left out since the
/// last count.
#[derive(Default)]
struct EventLimits(BTreeMap<[String; KEY_FIELDS.len()], (Option<TokenBucket>, u64)>);

impl EventLimits {
    /// Returns the limit and the count of the group `key`, or the shared ones if there are too many
    /// groups.
    fn entry_for_group(&mut self, key: &[String; KEY_FIELDS.len()]) -> &mut (Option<TokenBucket>, u64) {
        let has_own_limit = self.0.contains_key(key) || self.0.len() < MAX_KEYS;
        let key = if has_own_limit { key.clone() } else { ["other", "", "", ""].map(str::to_owned) };
        self.0.entry(key).or_default()
    }

    /// Takes a token from the limit of the group `key`. If there is none, counts the event as left
    /// out, and returns false.
    fn try_take(&mut self, key: &[String; KEY_FIELDS.len()], now: Instant) -> bool {
        let (bucket, left_out) = self.entry_for_group(key);
        let admitted = bucket.get_or_insert_with(|| TokenBucket::full(now)).try_take(EVENT_RATE, now);
        *left_out += u64::from(!admitted);
        admitted
    }

    /// Counts an event of the group `key` as left out.
    fn count_left_out(&mut self, key: &[String; KEY_FIELDS.len()]) {
        self.entry_for_group(key).1 += 1;
    }

    /// Returns a line for each group of which events were left out, and resets the counts.
    fn take_left_out_lines(&mut self) -> Vec<String> {
        let counted = self.0.iter_mut().filter(|(_, (_, left_out))| *left_out > 0);
        counted
            .map(|([kind, reason, lane, outcome], (_, left_out))| {
                let count = std::mem::take(left_out);
                let mut line = json!({
                    "time": current_timestamp(), "kind": "left_out", "of": kind, "reason": reason, "count": count,
                });
                for (name, value) in
                    [("lane", lane), ("outcome", outcome)].into_iter().filter(|(_, value)| !value.is_empty())
                {
                    line[name] = value.as_str().into();
                }
                line.to_string()
            })
            .collect()
    }
}

/// The thread that writes the lines.
struct Writer {
    path: Option<PathBuf>,
    output: Box<dyn Write + Send>,
    limits: Arc<Mutex<EventLimits>>,
}

impl Writer {
    /// Writes the lines of `messages` until all senders are dropped. At intervals, and at each
    /// flush, adds the numbers of events that were left out.
    fn run(mut self, messages: &Receiver<Message>) {
        let mut is_failing = false;
        let mut count_at = std::time::Instant::now() + COUNT_INTERVAL;
        loop {
            let time_left = count_at.saturating_duration_since(std::time::Instant::now());
            let message = messages.recv_timeout(time_left);
            let written = match message {
                Ok(Message::Line(line)) => writeln!(self.output, "{line}"),
                Ok(Message::Reopen) => open_output(self.path.as_deref()).map(|output| self.output = output),
                Ok(Message::Flush(done)) => {
                    let written = self.write_left_out_counts();
                    let _ = done.send(());
                    written
                }
                Err(RecvTimeoutError::Timeout) => {
                    count_at += COUNT_INTERVAL;
                    self.write_left_out_counts()
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match written {
                Ok(()) => is_failing = false,
                Err(error) if !is_failing => {
                    is_failing = true;
                    error!(
                        path = self.path.as_ref().map(|path| tracing::field::display(path.display())), %error,
                        "can't write the audit log; events are lost until it can be written again"
                    );
                }
                Err(_) => {}
            }
        }
    }

    fn write_left_out_counts(&mut self) -> io::Result<()> {
        let lines = self.limits.lock().unwrap_or_else(PoisonError::into_inner).take_left_out_lines();
        lines.iter().try_for_each(|line| writeln!(self.output, "{line}"))
    }
}

fn open_output(path: Option<&Path>) -> io::Result<Box<dyn Write + Send>> {
    let Some(path) = path else { return Ok(Box::new(io::stdout())) };
    let file: File = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    Ok(Box::new(file))
}

fn current_timestamp() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tracing::{info, subscriber};
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::prelude::*;

    use super::*;

    fn lines(path: &Path) -> Vec<Value> {
        std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn run_with_log(test: impl FnOnce(&AuditLog, &Path)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let log = AuditLog::open(&path).unwrap();
        // Log lines are off, which must not affect the audit log.
        let lines = tracing_subscriber::fmt::layer().with_writer(io::sink).with_filter(LevelFilter::OFF);
        let subscriber = tracing_subscriber::registry().with(lines).with(log.clone());
        subscriber::with_default(subscriber, || test(&log, &path));
    }

    #[test]
    fn audit_events_are_written_whatever_the_log_level() {
        run_with_log(|log, path| {
            info!(
                target: TARGET, kind = "lane", connection = 7_u64, peer = %"172.18.0.3:1", lane = "agent",
                "connected"
            );
            info!(target: "loopgate::access", kind = "lane", "not an audit event");
            log.flush();
            let lines = lines(path);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert_eq!(
                (&lines[0]["kind"], &lines[0]["connection"], &lines[0]["peer"]),
                (&json!("lane"), &json!(7), &json!("172.18.0.3:1"))
            );
            assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'), "{lines:?}");
            let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
        });
    }

    #[test]
    fn a_flood_of_one_reason_is_counted_and_hides_no_other() {
        run_with_log(|log, path| {
            for _ in 0..10_000 {
                info!(target: TARGET, kind = "refusal", reason = "client_rate", "refused");
            }
            info!(target: TARGET, kind = "refusal", reason = "denied", "refused");
            log.flush();
            let lines = lines(path);
            let written =
                lines.iter().filter(|line| line["reason"] == "client_rate" && line["kind"] == "refusal").count();
            assert!((200..1000).contains(&written), "{written}");
            let count = lines.iter().find(|line| line["kind"] == "left_out").unwrap();
            assert_eq!(
                (&count["of"], &count["reason"], &count["count"]),
                (&json!("refusal"), &json!("client_rate"), &json!(10_000 - written))
            );
            assert!(lines.iter().any(|line| line["reason"] == "denied"), "{lines:?}");
        });
    }

    #[test]
    fn a_flood_of_external_connections_hides_no_agents_lane_and_no_certificate() {
        run_with_log(|log, path| {
            for _ in 0..1_000 {
                info!(target: TARGET, kind = "lane", lane = "external", "connected");
                info!(target: TARGET, kind = "enrolment", outcome = "refused", reason = "", "enrolment refused");
            }
            info!(target: TARGET, kind = "lane", lane = "agent", "connected");
            info!(target: TARGET, kind = "enrolment", outcome = "issued", "enrolled");
            log.flush();
            let lines = lines(path);
            for (field, value) in [("lane", "agent"), ("outcome", "issued")] {
                assert!(lines.iter().any(|line| line[field] == value && line["kind"] != "left_out"), "{field} {value}");
            }
            let counted =
                |field: &str, value: &str| lines.iter().any(|line| line["kind"] == "left_out" && line[field] == value);
            assert!(counted("lane", "external") && counted("outcome", "refused"), "{lines:?}");
        });
    }

    #[test]
    fn a_renamed_file_is_opened_again() {
        run_with_log(|log, path| {
            let old = path.with_extension("1");
            info!(target: TARGET, kind = "lane", "one");
            log.flush();
            std::fs::rename(path, &old).unwrap();
            info!(target: TARGET, kind = "lane", "two");
            log.reopen();
            info!(target: TARGET, kind = "lane", "three");
            log.flush();
            assert_eq!((lines(&old).len(), lines(path).len()), (2, 1));
        });
    }
}
