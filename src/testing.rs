//! Support for tests of several modules: network namespaces, and tests in processes of their own.

use std::process::Command;

/// Runs `ip` of iproute2, within the namespace of this process.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the command that runs another one in a new network namespace; `None` if none may create a link there.
pub fn namespace_maker() -> Option<&'static [&'static str]> {
    const MAKERS: [&[&str]; 2] = [&["unshare", "--net"], &["unshare", "--user", "--map-root-user", "--net"]];
    MAKERS.into_iter().find(|maker| {
        let trial =
            Command::new(maker[0]).args(&maker[1..]).args(["ip", "link", "add", "left", "type", "veth"]).output();
        trial.is_ok_and(|output| output.status.success())
    })
}

/// Reports that a test was skipped. That is a failure in CI, where all that the tests need is installed.
pub fn skipped(why: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
    eprintln!("SKIPPED: {why}");
}

/// Runs `body`, the body of the test called `name`, in a process of its own that `launcher` starts.
pub fn in_own_process(launcher: &[&str], name: &str, body: impl AsyncFnOnce()) {
    const INSIDE: &str = "TEST_IN_OWN_PROCESS";
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        if !launcher.is_empty() {
            ip("link set lo up");
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
