//! The real OpenClaw gateway in a container like that of its own image.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::container::Container;
use crate::engine::{Engine, eventually, is_podman, skip, try_docker};

/// The version of OpenClaw issue #30740. It pairs even local clients only for the scopes that they
/// request.
pub const OLD: &str = "2026.2.19";
/// The newest version.
pub const NEW: &str = "2026.9.6";
/// The token of [`gateway`].
pub const TOKEN: &str = "a-token-for-tests";

/// OpenClaw's image without OpenClaw (`tests/setup/images.sh`).
pub const IMAGE: &str = "loopgate-test/openclaw";

/// An idle container with this version of OpenClaw, whose command line is `node /app/openclaw.mjs
/// ...`. If the version isn't installed, prints NOT RUN and returns `None`.
pub fn openclaw(name: &str, version: &str) -> Option<Container> {
    let tree = install_dir(version)?;
    let container = Container::idle(name).image(IMAGE).hardened().mount(tree, "/openclaw");
    let container = container.mount_writable(plugin_cache(version), "/tmp/jiti");
    // Podman has no option for the owner of a tmpfs. With Docker the home directory must not be
    // writable for other users, because OpenClaw would refuse it.
    let home = if is_podman() { "--tmpfs=/home/node:mode=1777" } else { "--tmpfs=/home/node:uid=1000,gid=1000" };
    Some(container.option("--tmpfs=/tmp").option(home))
}

/// The gateway on 127.0.0.1:18789, with the configuration of docker/compose.yaml.
pub fn gateway(version: &str) -> Option<Container> {
    gateway_with(version, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/openclaw.json")))
}

/// The gateway with another configuration.
pub fn gateway_with(version: &str, configuration: &Path) -> Option<Container> {
    Some(
        openclaw("gateway", version)?
            .env("OPENCLAW_GATEWAY_TOKEN", TOKEN)
            .mount(configuration, "/etc/openclaw.json")
            .env("OPENCLAW_CONFIG_PATH", "/etc/openclaw.json")
            .command(["node", "/app/openclaw.mjs", "gateway", "run"]),
    )
}

/// The directory of this version, to mount at /openclaw in a container of [`IMAGE`]. If one of them
/// is missing, prints NOT RUN and returns `None`.
pub fn install_dir(version: &str) -> Option<PathBuf> {
    let tree = cache_dir().join(format!("openclaw-{version}"));
    if !tree.is_dir() {
        skip(&format!("OpenClaw {version} is not installed"));
        return None;
    }
    try_docker(&["image", "inspect", IMAGE]).map_err(|why| skip(&why)).ok()?;
    Some(tree)
}

/// The directory in which jiti caches OpenClaw's compiled plugins. Without it, the old version
/// would compile them in each container, for half a minute of processor time. jiti validates the
/// files in its cache.
fn plugin_cache(version: &str) -> PathBuf {
    let directory = cache_dir().join(format!("jiti-{version}"));
    std::fs::create_dir_all(&directory).expect("the cache can be written to");
    // The users in the containers differ from the user that runs the tests.
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777))
        .expect("the directory belongs to this user");
    directory
}

/// The directory in which the scripts of `tests/setup` install.
fn cache_dir() -> PathBuf {
    let directory = |variable, rest| env::var_os(variable).map(|value| PathBuf::from(value).join(rest));
    directory("TEST_CACHE", "")
        .or_else(|| directory("XDG_CACHE_HOME", "loopgate-tests"))
        .or_else(|| directory("HOME", ".cache/loopgate-tests"))
        .expect("HOME is set")
}

#[test]
fn both_versions_of_the_gateway_listen_on_loopback_only() {
    let Some(engine) = Engine::start() else { return };
    let network = engine.network();
    let neighbour = engine.run(Container::idle("neighbour").network(&network));
    let mut gateways = Vec::new();
    // Both start at the same time, because each takes long.
    for version in [OLD, NEW] {
        let Some(gateway) = gateway(version) else { return };
        gateways.push(engine.run(gateway.network(&network)));
    }
    for gateway in gateways {
        let inside = ["curl", "--silent", "--fail", "--output", "/dev/null", "http://127.0.0.1:18789/"];
        eventually("the gateway answers inside", || gateway.try_exec(inside).status.success().then_some(()));
        let address = format!("http://{}:18789/", gateway.ip(&network));
        let outside = neighbour.try_exec(["curl", "--silent", "--max-time", "5", &address]);
        assert_eq!(outside.status.code(), Some(7), "a neighbour can connect to the gateway");
    }
}
