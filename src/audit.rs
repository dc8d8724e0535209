//! The audit log (`--audit-log`): enrolments, lane decisions and refusals, one JSON object in each
//! line.
//!
//! Modules emit audit events as `tracing` events with the target [`TARGET`], the field `kind`
//! (`enrolment`, `lane` or `refusal`) and, for a refusal, the field `reason`. [`AuditLog`] writes
//! the events to a file or to standard output, whatever `log.level` is. Log lines exclude the
//! target. No event has a secret, or a path or header of a request.
//!
//! Each combination of kind, reason, lane and outcome has a rate limit, so that a flood of some
//! events neither fills the disk nor hides others. Events above the limit are counted, and so are
//! those that can't be written. The counts are written within ten seconds, or as soon as the log
//! can be written again.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
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

/// The target of audit events. It is not that of this module, whose errors are log lines.
pub const TARGET: &str = "loopgate::audit::event";

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
/// The pause of [`AuditLog::flush`] before it tries a full queue again.
const FLUSH_RETRY: Duration = Duration::from_millis(10);

/// An open audit log. Clones write to the same file.
#[derive(Clone)]
pub struct AuditLog {
    queue: SyncSender<Message>,
    limits: Arc<Mutex<EventLimits>>,
    /// Whether the file must be opened again, although the queue had no room for the message.
    must_reopen: Arc<AtomicBool>,
}

/// The values of an event's [`KEY_FIELDS`]; empty for those that it lacks.
type GroupKey = [String; KEY_FIELDS.len()];

/// What the thread that writes the log has to do.
enum Message {
    /// Write the line of an event of the group `key`.
    Line { key: GroupKey, line: String },
    /// Open the file again.
    Reopen,
    /// Write the counts of events that were left out, and then answer.
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
        let output = Output::open(path.as_deref())?;
        let (queue, messages) = sync_channel(QUEUE_LENGTH);
        let (limits, must_reopen) = (Arc::default(), Arc::default());
        let log = Self { queue, limits, must_reopen };
        let writer = log.writer(path, output);
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&messages))?;
        Ok(log)
    }

    /// Returns what writes the messages of this log to `output`.
    fn writer(&self, path: Option<PathBuf>, output: Output) -> Writer {
        let (limits, must_reopen) = (Arc::clone(&self.limits), Arc::clone(&self.must_reopen));
        Writer { path, output, limits, must_reopen, is_failing: false }
    }

    /// Opens the file again, after it was renamed by log rotation. Events that are queued already
    /// are written to the old file, unless the queue is full.
    pub fn reopen(&self) {
        if self.queue.try_send(Message::Reopen).is_err() {
            self.must_reopen.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until all earlier events, and the counts of those that were left out, are written or
    /// have failed, for at most `FLUSH_TIMEOUT`.
    pub fn flush(&self) {
        let deadline = std::time::Instant::now() + FLUSH_TIMEOUT;
        let time_left = || deadline.saturating_duration_since(std::time::Instant::now());
        let (send, written) = channel();
        let mut message = Message::Flush(send);
        while let Err(TrySendError::Full(unsent)) = self.queue.try_send(message) {
            if time_left().is_zero() {
                return;
            }
            std::thread::sleep(FLUSH_RETRY);
            message = unsent;
        }
        let _ = written.recv_timeout(time_left());
    }

    /// Queues a line with `fields`. If the group is above its rate limit, or the queue is full,
    /// counts the event as left out.
    fn record(&self, mut fields: Map<String, Value>, now: Instant) {
        let key = KEY_FIELDS.map(|name| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned());
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if !limits.try_take(&key, now) {
            return;
        }
        fields.insert("time".into(), current_timestamp().into());
        let line = Value::Object(fields).to_string();
        if let Err(TrySendError::Full(unsent) | TrySendError::Disconnected(unsent)) =
            self.queue.try_send(Message::Line { key, line })
            && let Message::Line { key, .. } = unsent
        {
            limits.count_left_out(&key, 1);
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
/// last count that was written.
#[derive(Default)]
struct EventLimits(BTreeMap<GroupKey, (Option<TokenBucket>, u64)>);

impl EventLimits {
    /// Returns the limit and the count of the group `key`, or the shared ones if there are too many
    /// groups.
    fn entry_for_group(&mut self, key: &GroupKey) -> &mut (Option<TokenBucket>, u64) {
        let has_own_limit = self.0.contains_key(key) || self.0.len() < MAX_KEYS;
        let key = if has_own_limit { key.clone() } else { ["other", "", "", ""].map(str::to_owned) };
        self.0.entry(key).or_default()
    }

    /// Takes a token from the limit of the group `key`. If there is none, counts the event as left
    /// out, and returns false.
    fn try_take(&mut self, key: &GroupKey, now: Instant) -> bool {
        let (bucket, left_out) = self.entry_for_group(key);
        let admitted = bucket.get_or_insert_with(|| TokenBucket::full(now)).try_take(EVENT_RATE, now);
        *left_out += u64::from(!admitted);
        admitted
    }

    /// Counts `count` more events of the group `key` as left out.
    fn count_left_out(&mut self, key: &GroupKey, count: u64) {
        self.entry_for_group(key).1 += count;
    }

    /// Returns the groups of which events were left out, with their counts, and resets the counts.
    fn take_left_out(&mut self) -> Vec<(GroupKey, u64)> {
        let counted = self.0.iter_mut().filter(|(_, (_, left_out))| *left_out > 0);
        counted.map(|(key, (_, left_out))| (key.clone(), std::mem::take(left_out))).collect()
    }
}

/// Returns the line that says that `count` events of the group `key` were left out.
fn left_out_line([kind, reason, lane, outcome]: &GroupKey, count: u64) -> String {
    let mut line =
        json!({ "time": current_timestamp(), "kind": "left_out", "of": kind, "reason": reason, "count": count });
    for (name, value) in [("lane", lane), ("outcome", outcome)].into_iter().filter(|(_, value)| !value.is_empty()) {
        line[name] = value.as_str().into();
    }
    line.to_string()
}

/// The thread that writes the lines.
struct Writer {
    /// The file; `None` for standard output.
    path: Option<PathBuf>,
    output: Output,
    limits: Arc<Mutex<EventLimits>>,
    must_reopen: Arc<AtomicBool>,
    /// Whether the last write failed.
    is_failing: bool,
}

impl Writer {
    /// Does what the `messages` say, until all senders are dropped: writes lines, and opens the
    /// file again. At intervals, and at each flush, writes the counts of events that were left out.
    fn run(mut self, messages: &Receiver<Message>) {
        let mut count_at = std::time::Instant::now() + COUNT_INTERVAL;
        loop {
            let now = std::time::Instant::now();
            if now >= count_at {
                count_at = now + COUNT_INTERVAL;
                self.write_left_out_counts();
            }
            let message = messages.recv_timeout(count_at - now);
            if self.must_reopen.swap(false, Ordering::Relaxed) {
                self.reopen();
            }
            match message {
                Ok(Message::Line { key, line }) => self.write_event(&key, &line),
                Ok(Message::Reopen) => self.reopen(),
                Ok(Message::Flush(done)) => {
                    self.write_left_out_counts();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes the `line` of an event of the group `key`. If that fails, counts the event as left
    /// out.
    fn write_event(&mut self, key: &GroupKey, line: &str) {
        if !self.try_write(line) {
            self.count_left_out(key, 1);
        }
    }

    /// Writes a line for each group of which events were left out, and resets its count. A count
    /// that can't be written is kept.
    fn write_left_out_counts(&mut self) {
        let counts = self.limits.lock().unwrap_or_else(PoisonError::into_inner).take_left_out();
        for (key, count) in counts {
            if !self.try_write(&left_out_line(&key, count)) {
                self.count_left_out(&key, count);
            }
        }
    }

    fn count_left_out(&self, key: &GroupKey, count: u64) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).count_left_out(key, count);
    }

    /// Writes `line`, and returns whether that succeeded. Logs the first failure after a success.
    fn try_write(&mut self, line: &str) -> bool {
        let written = self.output.write_line(line);
        if let Err(error) = &written
            && !self.is_failing
        {
            error!(
                path = self.displayed_path(), %error,
                "can't write the audit log; events are left out, and counted, until it can be written again"
            );
        }
        self.is_failing = written.is_err();
        written.is_ok()
    }

    /// Opens the file again. If that fails, logs it and keeps the file that is open.
    fn reopen(&mut self) {
        match Output::open(self.path.as_deref()) {
            Ok(output) => self.output = output,
            Err(error) => error!(
                path = self.displayed_path(), %error,
                "can't open the audit log again; still writing to the file that was open"
            ),
        }
    }

    fn displayed_path(&self) -> Option<impl tracing::Value> {
        self.path.as_ref().map(|path| tracing::field::display(path.display()))
    }
}

/// The open file, or standard output.
struct Output {
    file: Box<dyn Write + Send>,
    /// Whether the last line lacks its end, so that the next one needs a newline before it.
    is_within_line: bool,
}

impl Output {
    /// Opens the file at `path` for appending, or standard output if there is no path.
    fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else {
            // `io::stdout()` would keep a part of a line that it could not write, and write it
            // later.
            let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            return Ok(Self { file: Box::new(stdout), is_within_line: false });
        };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { file: Box::new(file), is_within_line: ends_within_line(path) })
    }

    /// Writes `line` and a newline as one piece, so that lines of several processes stay apart. If
    /// the operating system takes only a part, the rest follows in another piece.
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        let text = format!("{}{line}\n", if self.is_within_line { "\n" } else { "" });
        let mut unwritten = text.as_bytes();
        while !unwritten.is_empty() {
            match self.file.write(unwritten) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.is_within_line = unwritten[count - 1] != b'\n';
                    unwritten = &unwritten[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Returns whether the file at `path` ends without a newline, as after a crash or on a full disk.
/// Returns false if that can't be read, or if it is no regular file.
fn ends_within_line(path: &Path) -> bool {
    let Some(metadata) = path.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() > 0) else {
        return false;
    };
    let mut last = [0];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, metadata.len() - 1));
    read.is_ok() && last != *b"\n"
}

fn current_timestamp() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
