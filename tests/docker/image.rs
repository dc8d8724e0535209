//! The image that docker/Dockerfile makes, built by `tests/docker/run`.

use std::process::Command;

use serde_json::Value;

use crate::container::{Container, Running};
use crate::engine::{Engine, attempt, docker, eventually, is_podman, output, skip};

const IMAGE: &str = "loopgate-test/loopgate";

/// The engine, if it has the image; `None`, said aloud, where not.
fn engine() -> Option<Engine> {
    let engine = Engine::start()?;
    attempt(&["image", "inspect", IMAGE]).map_err(|why| skip(&why)).ok()?;
    Some(engine)
}

/// What `docker image inspect` says by this template.
fn inspect(template: &str) -> String {
    docker(&["image", "inspect", "--format", template, IMAGE])
}

#[test]
fn the_image_holds_the_binary_and_next_to_nothing_else() {
    let Some(_engine) = engine() else { return };
    let container = docker(&["create", IMAGE]);
    let listing = output(Command::new("sh").args(["-c", &format!("docker export {container} | tar -t")]));
    docker(&["rm", &container]);
    let listing = String::from_utf8(listing.expect("tar can be run").stdout).unwrap();
    // What the engine itself puts into every container.
    let engines = [".dockerenv", "dev/", "proc/", "sys/", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"];
    let ours: Vec<&str> =
        listing.lines().filter(|path| !engines.iter().any(|engines| path.starts_with(engines))).collect();
    assert_eq!(
        ours,
        ["ca/", "etc/", "etc/group", "etc/passwd", "loopgate", "state/", "var/", "var/lib/", "var/lib/loopgate/"]
    );

    let bytes: u64 = inspect("{{.Size}}").parse().unwrap();
    // The goal is 8 MiB. Of what is above it, aws-lc's code for one processor or another is the largest part.
    // 11.5 MiB.
    assert!(bytes <= 23 << 19, "{bytes} bytes");
}

#[test]
fn the_image_runs_as_nobody_in_particular_and_knows_how_to_be_stopped_and_asked_for_its_health() {
    let Some(_engine) = engine() else { return };
    assert_eq!(inspect("{{.Config.User}}"), "65532:65532");
    assert_eq!(inspect("{{.Config.StopSignal}}"), "SIGTERM");
    // Podman runs an image's health check, but does not tell it by Docker's API.
    if !is_podman() {
        assert_eq!(inspect("{{json .Config.Healthcheck.Test}}"), r#"["CMD","/loopgate","healthcheck"]"#);
    }
    assert_eq!(inspect("{{json .Config.Entrypoint}}{{json .Config.Cmd}}"), r#"["/loopgate"]["run"]"#);
    assert_eq!(inspect(r#"{{index .Config.Labels "org.opencontainers.image.version"}}"#), env!("CARGO_PKG_VERSION"));
}

#[test]
fn new_volumes_are_loopgates_own_and_only_its_state_is_private() {
    let Some(engine) = engine() else { return };
    let (state, shared) = (engine.volume(), engine.volume());
    let loopgate = engine.run(
        Container::new("loopgate")
            .image(IMAGE)
            .mount_writable(state.name(), "/var/lib/loopgate")
            .mount_writable(shared.name(), "/ca"),
    );
    // As the service `ca` of compose.yaml does. Podman gives a volume that is still empty to whoever mounts it next.
    let export = ["/loopgate", "cert", "export", "--out", "/ca/ca.pem"];
    eventually("there is a CA", || loopgate.try_exec(export).status.success().then_some(()));
    let looker = engine.run(Container::idle("looker").mount(state.name(), "/state").mount(shared.name(), "/ca"));
    assert_eq!(looker.exec(["stat", "--format=%u:%g %a", "/state"]), "65532:65532 700");
    assert_eq!(looker.exec(["stat", "--format=%u:%g %a", "/ca"]), "65532:65532 755");
}

/// Checks by the status of the `loopgate` of the image in `container` that seccomp restricts it, and Landlock where the
/// engine's own seccomp profile permits it (since Docker 23). Returns whether both are in force.
pub fn is_restricted(container: &Running) -> bool {
    let status: Value = serde_json::from_str(&container.exec(["/loopgate", "status", "--json"])).expect("JSON");
    let sandbox = &status["sandbox"];
    assert_eq!(sandbox["seccomp"], true, "{sandbox}");
    assert_eq!(sandbox["landlock"] == true, sandbox["problem"].is_null(), "{sandbox}");
    sandbox["landlock"] == true
}

#[test]
fn the_image_restricts_its_own_process_and_works_so() {
    let Some(engine) = engine() else { return };
    let (network, state, other) = (engine.network(), engine.volume(), engine.volume());
    let container = |name: &str| Container::new(name).image(IMAGE).network(&network).hardened();
    let loopgate = engine.run(container("loopgate").alias("gateway").mount_writable(state.name(), "/var/lib/loopgate"));
    eventually("it is healthy", || {
        loopgate.try_exec(["/loopgate", "healthcheck", "--live"]).status.success().then_some(())
    });
    let both = is_restricted(&loopgate);
    // A new leaf is written to the state directory and served.
    let fingerprint = || loopgate.exec(["/loopgate", "cert", "show"]);
    let before = fingerprint();
    loopgate.exec(["/loopgate", "cert", "rotate"]);
    assert_ne!(fingerprint(), before);
    loopgate.exec(["/loopgate", "reload"]);
    let client = engine.run(Container::idle("client").network(&network).mount(state.name(), "/state"));
    let ask = ["curl", "--silent", "--cacert", "/state/ca.pem", "--write-out", "%{http_code}", "--output", "/dev/null"];
    let url = format!("https://{}:18443/", loopgate.ip(&network));
    assert_eq!(client.try_exec(ask.iter().copied().chain([url.as_str()])).stdout, b"503", "{}", loopgate.logs());

    let strict = container("strict").mount_writable(other.name(), "/var/lib/loopgate");
    let strict = engine.run(strict.command(["run", "--sandbox=required"]));
    if both {
        eventually("it is healthy", || {
            strict.try_exec(["/loopgate", "healthcheck", "--live"]).status.success().then_some(())
        });
        assert!(is_restricted(&strict));
    } else {
        assert_ne!(strict.ends(), 0);
        assert!(strict.logs().contains("landlock"), "{}", strict.logs());
    }
}
