//! Test suites of other projects against the real binary on loopback, and a soak test. `tests/run
//! suites` installs what they need.

mod autobahn;
mod scanners;
mod slow;
mod soak;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// The Python of the environment that `tests/setup/suites.sh` makes. Without the environment,
/// prints NOT RUN and returns `None`; in CI it fails.
fn python() -> Option<PathBuf> {
    let tree = std::env::var_os("TEST_SUITES").map(PathBuf::from);
    if tree.is_none() {
        assert!(std::env::var("CI").is_err(), "NOT RUN: `tests/run suites` installs what this needs");
        print_now("NOT RUN: `tests/run suites` installs what this needs");
    }
    tree.map(|tree| tree.join("bin/python"))
}

/// Prints a line at once, even if the test harness captures output, because these tests take long.
fn print_now(line: impl std::fmt::Display) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}

/// Runs a command to its end, and returns its standard output and standard error. Fails if the
/// command can't be started.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs `test` on a runtime with two threads, the number of processors in CI.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}
