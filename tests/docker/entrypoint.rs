//! `loopgate exec` as a container's first process.

use crate::container::Running;
use crate::engine::{Engine, eventually};
use crate::harness::Deployment;

impl Deployment<'_> {
    fn runs(&self, script: &str) -> Running {
        let container = self.attested_loopgate("agent", ["exec", "--", "sh", "-c", script]);
        self.engine.run(container.env("LOOPGATE_GRACE", "1s"))
    }
}

#[test]
fn as_the_first_process_it_hands_on_signals_and_statuses_and_leaves_no_zombies() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let seven = deployment.runs("exit 7");
    let waits = "echo ready; while :; do sleep 0.1; done";
    let polite = deployment.runs(&format!("trap 'exit 42' TERM; {waits}"));
    let deaf = deployment.runs(&format!("trap '' TERM; {waits}"));
    // The shell between dies at once, and leaves its child to the first process.
    let orphans =
        deployment.runs("for _ in 1 2 3; do sh -c 'sleep 0.2 & echo $!'; done; echo ready; exec sleep infinity");

    assert_eq!(seven.ends(), 7, "{}", seven.logs());
    for (container, status) in [(polite, 42), (deaf, 137)] {
        container.says("ready");
        // Not `docker stop`, which would kill what loopgate fails to.
        container.signal("TERM");
        assert_eq!(container.ends(), status, "{}", container.logs());
    }
    orphans.says("ready");
    for orphan in orphans.logs().lines().filter(|line| line.parse::<u32>().is_ok()) {
        let there = format!("test -e /proc/{orphan}");
        eventually("the orphan is reaped", || (!orphans.try_exec(["sh", "-c", &there]).status.success()).then_some(()));
    }
}
