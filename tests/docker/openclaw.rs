//! The real OpenClaw gateway in a container, as its own image has it.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::container::Container;
use crate::engine::{Engine, attempt, eventually, is_podman, skip};

/// The issue's own version, which pairs even loopback clients sparingly.
pub const OLD: &str = "2026.2.19";
/// The newest one.
pub const NEW: &str = "2026.9.6";
/// The token that [`gateway`] asks for.
pub const TOKEN: &str = "a-token-for-tests";

/// OpenClaw's image without OpenClaw (`tests/setup/images.sh`).
pub const IMAGE: &str = "loopgate-test/openclaw";

/// A container with this version of OpenClaw in it, idle: `node /app/openclaw.mjs ...` is its
/// command line. `None`, said aloud, where it isn't installed.
pub fn openclaw(name: &str, version: &str) -> Option<Container> {
    let tree = tree(version)?;
    let container = Container::idle(name).image(IMAGE).hardened().mount(tree, "/openclaw");
    let container = container.mount_writable(compiled(version), "/tmp/jiti");
    // Whatever else it writes is gone with the container.
    // Podman takes no owner. Where another user could write, OpenClaw refuses its state.
    let home = if is_podman() { "--tmpfs=/home/node:mode=1777" } else { "--tmpfs=/home/node:uid=1000,gid=1000" };
    Some(container.option("--tmpfs=/tmp").option(home))
}

/// The gateway on 127.0.0.1:18789, with the configuration that docker/compose.yaml gives it.
pub fn gateway(version: &str) -> Option<Container> {
    gateway_with(version, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/openclaw.json")))
}

/// The same with another configuration.
pub fn gateway_with(version: &str, configuration: &Path) -> Option<Container> {
    Some(
        openclaw("gateway", version)?
            .env("OPENCLAW_GATEWAY_TOKEN", TOKEN)
            .mount(configuration, "/etc/openclaw.json")
            .env("OPENCLAW_CONFIG_PATH", "/etc/openclaw.json")
            .command(["node", "/app/openclaw.mjs", "gateway", "run"]),
    )
}

/// This version's tree, which belongs to /openclaw in a container of its image. `None`, said aloud,
/// where either isn't there.
pub fn tree(version: &str) -> Option<PathBuf> {
    let tree = cache().join(format!("openclaw-{version}"));
    if !tree.is_dir() {
        skip(&format!("OpenClaw {version} is not installed"));
        return None;
    }
    attempt(&["image", "inspect", IMAGE]).map_err(|why| skip(&why)).ok()?;
    Some(tree)
}

/// Where OpenClaw finds its plugins compiled. The old version would do that anew in each container,
/// for half a minute of processor time each; jiti, which does it, looks at what it finds here
/// before it believes it.
fn compiled(version: &str) -> PathBuf {
    let directory = cache().join(format!("jiti-{version}"));
    std::fs::create_dir_all(&directory).expect("the cache can be written to");
    // Nobody in a container is who runs the tests.
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    directory
}

/// The directory that the scripts of `tests/setup` fill.
fn cache() -> PathBuf {
    let directory = |variable, rest| env::var_os(variable).map(|value| PathBuf::from(value).join(rest));
    directory("TEST_CACHE", "")
        .or_else(|| directory("XDG_CACHE_HOME", "loopgate-tests"))
        .or_else(|| directory("HOME", ".cache/loopgate-tests"))
        .expect("HOME is set")
}

#[test]
fn both_versions_of_the_gateway_listen_on_loopback_alone() {
    let Some(engine) = Engine::start() else { return };
    let network = engine.network();
    let neighbour = engine.run(Container::idle("neighbour").network(&network));
    let mut gateways = Vec::new();
    // Both at once: each takes its time to start.
    for version in [OLD, NEW] {
        let Some(gateway) = gateway(version) else { return };
        gateways.push(engine.run(gateway.network(&network)));
    }
    for gateway in gateways {
        let inside = ["curl", "--silent", "--fail", "--output", "/dev/null", "http://127.0.0.1:18789/"];
        eventually("the gateway answers inside", || gateway.try_exec(inside).status.success().then_some(()));
        let address = format!("http://{}:18789/", gateway.ip(&network));
        let outside = neighbour.try_exec(["curl", "--silent", "--max-time", "5", &address]);
        assert_eq!(outside.status.code(), Some(7), "it refuses connections from outside");
    }
}
