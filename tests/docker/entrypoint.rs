//! `loopgate exec` as a container's first process.

use crate::container::Running;
use crate::engine::{Engine, eventually};
use crate::harness::Deployment;

impl Deployment<'_> {
    /// Starts an agent's container in which `loopgate exec` runs the shell script.
    fn run_script(&self, script: &str) -> Running {
        let container = self.attested_loopgate("agent", ["exec", "--", "sh", "-c", script]);
        self.engine.run(container.env("LOOPGATE_GRACE", "1s"))
    }
}

#[test]
fn exec_as_the_first_process_forwards_signals_and_statuses_and_reaps_zombies() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let with_status_7 = deployment.run_script("exit 7");
    let waits = "echo ready; while :; do sleep 0.1; done";
    let exits = deployment.run_script(&format!("trap 'exit 42' TERM; {waits}"));
    let ignores = deployment.run_script(&format!("trap '' TERM; {waits}"));
    // The inner shells exit at once, so their children become children of the first process.
    let orphans =
        deployment.run_script("for _ in 1 2 3; do sh -c 'sleep 0.2 & echo $!'; done; echo ready; exec sleep infinity");

    assert_eq!(with_status_7.wait_for_exit(), 7, "{}", with_status_7.logs());
    for (container, status) in [(exits, 42), (ignores, 137)] {
        container.wait_for_log("ready");
        // Not with `docker stop`, which would kill the processes that loopgate fails to end.
        container.signal("TERM");
        assert_eq!(container.wait_for_exit(), status, "{}", container.logs());
    }
    orphans.wait_for_log("ready");
    for orphan in orphans.logs().lines().filter(|line| line.parse::<u32>().is_ok()) {
        let there = format!("test -e /proc/{orphan}");
        eventually("the orphan is reaped", || (!orphans.try_exec(["sh", "-c", &there]).status.success()).then_some(()));
    }
}
