//! A network namespace of a test's own, in which clients can have addresses that are neither
//! loopback nor this machine's.

use std::io::Write;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs `test`, and everything that it starts, on its own thread and in its own network namespace.
/// There, a socket can connect to 127.0.0.1 from each address of 198.51.100.0/24, although no
/// interface has these addresses. Without root or `ip` the test is reported as not run, or fails if
/// `CI` is `true`.
pub fn in_namespace<F>(test: impl FnOnce() -> F + Send)
where
    F: Future<Output = ()>,
{
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let run = move || {
        if let Err(why) = enter() {
            assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "NOT RUN: {name}: {why}");
            return writeln!(std::io::stderr(), "NOT RUN: {name}: {why}").expect("standard error");
        }
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test());
    };
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn enter() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace: {error}"))?;
    for words in ["link set lo up", "route add local 198.51.100.0/24 dev lo"] {
        let output = Command::new("ip").args(words.split(' ')).output().map_err(|error| format!("no `ip`: {error}"))?;
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
