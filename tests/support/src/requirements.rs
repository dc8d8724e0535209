//! What a test needs from outside the repository: where it is, and how its absence is reported.

use std::env;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A requirement that is missing, in words.
pub struct Missing(pub String);

/// Returns the directory into which the scripts of `tests/setup` install.
pub fn cache_dir() -> PathBuf {
    let home = || {
        env::var_os("XDG_CACHE_HOME")
            .map_or_else(|| Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cache"), PathBuf::from)
    };
    env::var_os("TEST_CACHE").map_or_else(|| home().join("loopgate-tests"), PathBuf::from)
}

/// Returns the `node_modules` directory of a tree in the cache.
pub fn node_modules(tree: &str) -> Result<PathBuf, Missing> {
    let modules = cache_dir().join(tree).join("node_modules");
    if modules.is_dir() { Ok(modules) } else { Err(Missing(format!("{tree} is not installed"))) }
}

/// Returns the path of a program in `PATH`.
pub fn find_program(name: &str) -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Missing(format!("{name} is not in PATH")))
}

/// Runs a test of a section that needs the whole machine: only one such test runs at a time. If a
/// requirement is missing, the test is reported as not run, or fails if `CI` is `true`.
pub fn run_exclusively(section: &str, name: &str, test: impl FnOnce() -> Result<(), Missing>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // A poisoned lock is fine: a test that fails still removes what it created.
    let _turn: MutexGuard<()> = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let start = Instant::now();
    print_now(format_args!("{name}"));
    match test() {
        Ok(()) => print_now(format_args!("{name}: passed, {:.1} s", start.elapsed().as_secs_f32())),
        Err(Missing(what)) if env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("NOT RUN: {name}: {what}; `tests/run {section}` installs it")
        }
        Err(Missing(what)) => print_now(format_args!("NOT RUN: {name}: {what}; `tests/run {section}` installs it")),
    }
}

/// Reports the calling test as not run, and why.
///
/// # Panics
/// If `CI` is `true`, because everything that the tests need is installed there.
pub fn report_not_run(why: impl Display) {
    let line = format!("NOT RUN: {}: {why}", std::thread::current().name().unwrap_or("a test"));
    assert!(!env::var("CI").is_ok_and(|ci| ci == "true"), "{line}");
    print_now(line);
}

/// Prints a line at once, whether or not output is captured: these tests take minutes, and one that
/// did not run must be seen.
pub fn print_now(line: impl Display) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}
