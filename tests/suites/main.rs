//! Other people's test suites against the real binary on loopback, and a soak. `tests/run suites`
//! installs what they need.

mod autobahn;
mod scanners;
mod slow;
mod soak;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// The Python environment that `tests/setup/suites.sh` made, or nothing where a developer ran
/// `cargo test` alone. In CI that is a failure.
fn python() -> Option<PathBuf> {
    let tree = std::env::var_os("TEST_SUITES").map(PathBuf::from);
    if tree.is_none() {
        assert!(std::env::var("CI").is_err(), "NOT RUN: `tests/run suites` installs what this needs");
        say("NOT RUN: `tests/run suites` installs what this needs");
    }
    tree.map(|tree| tree.join("bin/python"))
}

/// Says a line at once, whether or not the harness captures output: these tests take a while.
fn say(line: impl std::fmt::Display) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}

/// Runs a command to its end, and returns what it printed; a tool that can't be started or that crashes fails the test.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A runtime with a thread for each of the two processors that CI has.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}
