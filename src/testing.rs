//! What stories in several rooms need: network namespaces, and processes of their own.

use std::process::Command;

/// Runs `ip` of iproute2, within the namespace of this process.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The command that runs another one in a network namespace of its own, if there is one that may make a link there.
pub fn namespace_maker() -> Option<&'static [&'static str]> {
    const MAKERS: [&[&str]; 2] = [&["unshare", "--net"], &["unshare", "--user", "--map-root-user", "--net"]];
    MAKERS.into_iter().find(|maker| {
        let trial = Command::new(maker[0]).args(&maker[1..]).args(["ip", "link", "add", "left", "type", "veth"]).output();
        trial.is_ok_and(|output| output.status.success())
    })
}

/// Says aloud that a story was not told, which is a failure where everything is meant to be there.
pub fn skipped(why: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
    eprintln!("SKIPPED: {why}");
}

/// Runs `story`, which the test called `name` tells, in a process of its own that `launcher` starts.
pub fn in_own_process(launcher: &[&str], name: &str, story: impl AsyncFnOnce()) {
    const INSIDE: &str = "TEST_STORY";
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        if !launcher.is_empty() {
            ip("link set lo up");
        }
        return tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
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
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
