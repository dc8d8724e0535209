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
        let written = lines.iter().filter(|line| line["reason"] == "client_rate" && line["kind"] == "refusal").count();
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

/// A disk of which the test sets how many bytes it takes. Each write is a piece.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(usize, Vec<Vec<u8>>)>>);

impl Disk {
    fn set_space(&self, space: usize) {
        self.0.lock().unwrap().0 = space;
    }

    fn pieces(&self) -> Vec<String> {
        self.0.lock().unwrap().1.iter().map(|piece| String::from_utf8(piece.clone()).unwrap()).collect()
    }
}

impl Write for Disk {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let (space, pieces) = &mut *self.0.lock().unwrap();
        let count = text.len().min(*space);
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *space -= count;
        pieces.push(text[..count].to_vec());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `test` with what writes to a disk, and returns the log lines.
fn run_with_writer(test: impl FnOnce(&mut Writer, &Disk)) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (disk, log) = (Disk::default(), Log::default());
    let (queue, _messages) = sync_channel(1);
    let audit = AuditLog { queue, limits: Arc::default(), must_reopen: Arc::default() };
    let mut writer = audit.writer(None, Output { file: Box::new(disk.clone()), is_within_line: false });
    let lines = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish();
    subscriber::with_default(subscriber, || test(&mut writer, &disk));
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

fn key(reason: &str) -> GroupKey {
    ["refusal", reason, "", ""].map(str::to_owned)
}

#[test]
fn a_line_is_one_piece() {
    run_with_writer(|writer, disk| {
        disk.set_space(1000);
        writer.write_event(&key("a"), "one");
        assert_eq!(disk.pieces(), ["one\n"]);
    });
}

#[test]
fn what_a_full_disk_loses_is_counted_and_what_follows_is_a_line_of_its_own() {
    run_with_writer(|writer, disk| {
        disk.set_space(6);
        for line in ["one", "two", "three"] {
            writer.write_event(&key("a"), line);
        }
        writer.write_left_out_counts();
        disk.set_space(1000);
        writer.write_event(&key("a"), "four");
        writer.write_left_out_counts();
        let text = disk.pieces().concat();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["one", "tw", "four"], "{text}");
        let count: Value = serde_json::from_str(lines[3]).unwrap();
        assert_eq!((&count["reason"], &count["count"]), (&json!("a"), &json!(2)), "{text}");
        assert_eq!(lines.len(), 4, "{text}");
    });
}

#[test]
fn a_disk_that_stays_full_is_logged_once_and_again_after_a_line_was_written() {
    let log = run_with_writer(|writer, disk| {
        writer.write_left_out_counts();
        for _ in 0..3 {
            writer.write_event(&key("a"), "one");
            writer.limits.lock().unwrap().take_left_out();
            writer.write_left_out_counts();
        }
        disk.set_space(4);
        for line in ["two", "three", "four"] {
            writer.write_event(&key("a"), line);
        }
    });
    assert_eq!(log.matches("can't write the audit log").count(), 2, "{log}");
    assert!(!log.contains(TARGET), "the error would be left out of the log: {log}");
}

#[test]
fn a_file_that_ends_within_a_line_gets_a_newline_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    for (before, after) in [("", "one\n"), ("zero\n", "zero\none\n"), ("ze", "ze\none\n")] {
        std::fs::write(&path, before).unwrap();
        Output::open(Some(&path)).unwrap().write_line("one").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
    }
}

#[test]
fn a_full_queue_loses_no_wish_to_open_the_file_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (queue, messages) = sync_channel(1);
    let audit = AuditLog { queue, limits: Arc::default(), must_reopen: Arc::default() };
    let writer = audit.writer(Some(path.clone()), Output { file: Box::new(io::sink()), is_within_line: false });
    audit.queue.try_send(Message::Line { key: key("a"), line: "{}".into() }).unwrap();
    audit.reopen();
    drop(audit);
    writer.run(&messages);
    assert_eq!(lines(&path), [json!({})]);
}

#[test]
fn a_failure_to_open_the_file_again_keeps_the_old_one() {
    let log = run_with_writer(|writer, disk| {
        writer.path = Some("/nowhere/audit.jsonl".into());
        writer.reopen();
        disk.set_space(1000);
        writer.write_event(&key("a"), "one");
        assert_eq!(disk.pieces(), ["one\n"]);
    });
    assert!(log.contains("can't open the audit log again"), "{log}");
    assert!(log.contains("/nowhere/audit.jsonl"), "{log}");
}
