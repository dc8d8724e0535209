//! Support for the unit tests of several modules: network namespaces, and tests that run in a
//! process of their own.

use std::io::Write;
use std::process::Command;

/// Runs `ip` of iproute2 with `arguments`, in the network namespace of this process.
///
/// # Panics
/// If the command fails.
pub fn run_ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the words of a command, such as `unshare --net`, that runs the command after them in a
/// new network namespace. `None` if this process may not create a namespace with links in it.
pub fn new_namespace_command() -> Option<&'static [&'static str]> {
    const COMMANDS: [&[&str]; 2] = [&["unshare", "--net"], &["unshare", "--user", "--map-root-user", "--net"]];
    COMMANDS.into_iter().find(|command| {
        let trial =
            Command::new(command[0]).args(&command[1..]).args(["ip", "link", "add", "left", "type", "veth"]).output();
        trial.is_ok_and(|output| output.status.success())
    })
}

/// Prints that the calling test is not run, and why, to the standard error that libtest does not
/// capture.
///
/// # Panics
/// If `CI` is `true`, because everything that the tests need is installed there.
pub fn report_skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "NOT RUN: {name}: {why}");
    writeln!(std::io::stderr(), "NOT RUN: {name}: {why}").expect("standard error");
}

/// Runs `body`, the body of the test called `name`, in a new process that `launcher` starts. To do
/// so it starts this test binary again, for that one test.
pub fn run_in_own_process(launcher: &[&str], name: &str, body: impl AsyncFnOnce()) {
    const INSIDE: &str = "TEST_IN_OWN_PROCESS";
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        if !launcher.is_empty() {
            run_ip("link set lo up");
        }
        return tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
    }
    let this = std::env::current_exe().unwrap();
    let mut command = match launcher {
        [] => Command::new(&this),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&this);
            command
        }
    };
    let output = command.args(["--exact", name, "--nocapture"]).env(INSIDE, name).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}
