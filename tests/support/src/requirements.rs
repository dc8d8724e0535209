//! What a test needs from outside the repository: where it is, and how its absence is reported.

use std::env;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is missing, for the report.
pub struct Missing(pub String);

/// The directory that the scripts of `tests/setup` fill.
pub fn cache() -> PathBuf {
    let home = || {
        env::var_os("XDG_CACHE_HOME")
            .map_or_else(|| Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cache"), PathBuf::from)
    };
    env::var_os("TEST_CACHE").map_or_else(|| home().join("loopgate-tests"), PathBuf::from)
}

/// The `node_modules` directory of a tree in the cache.
pub fn node_modules(tree: &str) -> Result<PathBuf, Missing> {
    let modules = cache().join(tree).join("node_modules");
    if modules.is_dir() { Ok(modules) } else { Err(Missing(format!("{tree} is not installed"))) }
}

/// A program in `PATH`.
pub fn program(name: &str) -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Missing(format!("no {name} here")))
}

/// Runs a test that needs the whole machine: only one runs at a time. Without what it needs it is
/// reported as not run, or fails if `CI` is `true`.
pub fn exclusively(name: &str, test: impl FnOnce() -> Result<(), Missing>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // A test that failed has cleaned up after itself.
    let _turn: MutexGuard<()> = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let start = Instant::now();
    report(format_args!("{name}"));
    match test() {
        Ok(()) => report(format_args!("{name}: passed, {:.1} s", start.elapsed().as_secs_f32())),
        Err(Missing(what)) if env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("NOT RUN: {name}: {what}; `tests/run real` installs it")
        }
        Err(Missing(what)) => report(format_args!("NOT RUN: {name}: {what}; `tests/run real` installs it")),
    }
}

/// Prints a line at once, whether or not output is captured: these tests take minutes, and one that
/// did not run must be seen.
pub fn report(line: impl Display) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}
