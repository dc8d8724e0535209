//! The image of docker/Dockerfile, which `tests/docker/run` builds.

use std::process::Command;

use serde_json::Value;

use crate::container::{Container, Running};
use crate::engine::{Engine, docker, eventually, is_podman, output, skip, try_docker};

const IMAGE: &str = "loopgate-test/loopgate";

/// Returns the engine. If it lacks the image, prints NOT RUN and returns `None`.
fn engine() -> Option<Engine> {
    let engine = Engine::start()?;
    try_docker(&["image", "inspect", IMAGE]).map_err(|why| skip(&why)).ok()?;
    Some(engine)
}

/// The output of `docker image inspect` with this template.
fn inspect(template: &str) -> String {
    docker(&["image", "inspect", "--format", template, IMAGE])
}

#[test]
fn the_image_contains_the_binary_and_few_other_files() {
    let Some(_engine) = engine() else { return };
    let container = docker(&["create", IMAGE]);
    let listing = output(Command::new("sh").args(["-c", &format!("docker export {container} | tar -t")]));
    docker(&["rm", &container]);
    let listing = String::from_utf8(listing.expect("tar can be run").stdout).unwrap();
    // The engine adds these to every container.
    let engines_paths =
        [".dockerenv", "dev/", "proc/", "sys/", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"];
    let image_paths: Vec<&str> =
        listing.lines().filter(|path| !engines_paths.iter().any(|engines| path.starts_with(engines))).collect();
    assert_eq!(
        image_paths,
        ["ca/", "etc/", "etc/group", "etc/passwd", "loopgate", "state/", "var/", "var/lib/", "var/lib/loopgate/"]
    );

    let bytes: u64 = inspect("{{.Size}}").parse().unwrap();
    // The limit is 11.5 MiB; the goal is 8 MiB. The largest part of the difference is aws-lc's code
    // for several generations of processors.
    assert!(bytes <= 23 << 19, "{bytes} bytes");
}

#[test]
fn the_image_sets_user_stop_signal_health_check_and_entrypoint() {
    let Some(_engine) = engine() else { return };
    assert_eq!(inspect("{{.Config.User}}"), "65532:65532");
    assert_eq!(inspect("{{.Config.StopSignal}}"), "SIGTERM");
    // Podman runs an image's health check, but doesn't return it in Docker's API.
    if !is_podman() {
        assert_eq!(inspect("{{json .Config.Healthcheck.Test}}"), r#"["CMD","/loopgate","healthcheck"]"#);
    }
    assert_eq!(inspect("{{json .Config.Entrypoint}}{{json .Config.Cmd}}"), r#"["/loopgate"]["run"]"#);
    assert_eq!(inspect(r#"{{index .Config.Labels "org.opencontainers.image.version"}}"#), env!("CARGO_PKG_VERSION"));
}

#[test]
fn new_volumes_belong_to_loopgates_user_and_only_its_state_is_private() {
    let Some(engine) = engine() else { return };
    let (state, shared) = (engine.volume(), engine.volume());
    let loopgate = engine.run(
        Container::new("loopgate")
            .image(IMAGE)
            .mount_writable(state.name(), "/var/lib/loopgate")
            .mount_writable(shared.name(), "/ca"),
    );
    // The service `ca` of compose.yaml runs this too. The volume must not stay empty, because
    // Podman changes the owner of an empty volume at the next mount.
    let export = ["/loopgate", "cert", "export", "--out", "/ca/ca.pem"];
    eventually("there is a CA", || loopgate.try_exec(export).status.success().then_some(()));
    let inspector = engine.run(Container::idle("inspector").mount(state.name(), "/state").mount(shared.name(), "/ca"));
    assert_eq!(inspector.exec(["stat", "--format=%u:%g %a", "/state"]), "65532:65532 700");
    assert_eq!(inspector.exec(["stat", "--format=%u:%g %a", "/ca"]), "65532:65532 755");
}

/// Fails unless seccomp restricts the `loopgate` in `container`, and Landlock does or its status
/// says why not. Landlock needs the seccomp profile of Docker 23 or later. Returns whether both are
/// in force.
pub fn is_restricted(container: &Running) -> bool {
    let status: Value = serde_json::from_str(&container.exec(["/loopgate", "status", "--json"])).expect("JSON");
    let sandbox = &status["sandbox"];
    assert_eq!(sandbox["seccomp"], true, "{sandbox}");
    assert_eq!(sandbox["landlock"] == true, sandbox["problem"].is_null(), "{sandbox}");
    sandbox["landlock"] == true
}

#[test]
fn loopgate_in_the_image_restricts_itself_and_works() {
    let Some(engine) = engine() else { return };
    let (network, state, other) = (engine.network(), engine.volume(), engine.volume());
    let container = |name: &str| Container::new(name).image(IMAGE).network(&network).hardened();
    let loopgate = engine.run(container("loopgate").alias("gateway").mount_writable(state.name(), "/var/lib/loopgate"));
    eventually("loopgate is healthy", || {
        loopgate.try_exec(["/loopgate", "healthcheck", "--live"]).status.success().then_some(())
    });
    let has_both = is_restricted(&loopgate);
    // A new certificate is written to the state directory and served.
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
    if has_both {
        eventually("loopgate with the required sandbox is healthy", || {
            strict.try_exec(["/loopgate", "healthcheck", "--live"]).status.success().then_some(())
        });
        assert!(is_restricted(&strict));
    } else {
        assert_ne!(strict.wait_for_exit(), 0);
        assert!(strict.logs().contains("landlock"), "{}", strict.logs());
    }
}
