//! Behaviour of the engine, and of the tests' own tools, that the other tests rely on.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::container::Container;
use crate::engine::{Engine, eventually};

#[test]
fn a_container_in_anothers_namespace_has_its_addresses_until_that_one_restarts() {
    let Some(engine) = Engine::start() else { return };
    let network = engine.network();
    let owner = engine.run(Container::idle("owner").network(&network).alias("gateway"));
    let sidecar = engine.run(Container::idle("sidecar").in_namespace_of(&owner).hardened());
    let addresses = || sidecar.exec(["ip", "-brief", "-4", "address"]);
    assert!(addresses().contains(&owner.ip(&network).to_string()));

    owner.restart();
    eventually("the sidecar has only lo", || (!addresses().contains("eth0")).then_some(()));

    sidecar.restart();
    assert!(
        addresses().contains(&owner.ip(&network).to_string()),
        "a restart does not give the sidecar the addresses back"
    );
}

#[test]
fn a_container_can_get_the_address_and_labels_of_a_removed_one_but_not_its_alias() {
    let Some(engine) = Engine::start() else { return };
    let network = engine.network();
    let watcher = engine.run(Container::idle("watcher").network(&network));
    let first = engine.run(Container::idle("first").network(&network).alias("agent"));
    let address = first.ip(&network);
    assert!(watcher.exec(["getent", "hosts", "agent"]).contains(&address.to_string()));

    first.remove();
    let second = engine
        .run(Container::idle("second").network(&network).option(format!("--ip={address}")).of_project("p", "agent"));
    assert_eq!(second.ip(&network), address);
    assert_eq!(second.inspect("{{index .Config.Labels \"com.docker.compose.service\"}}"), "agent");
    assert!(!watcher.try_exec(["getent", "hosts", "agent"]).status.success());
}

#[test]
fn a_network_can_be_joined_and_left_while_a_container_runs() {
    let Some(engine) = Engine::start() else { return };
    let (network, other) = (engine.network(), engine.network());
    let container = engine.run(Container::idle("container").network(&network));
    other.connect(&container, &["front"]);
    assert!(container.exec(["ip", "-brief", "address"]).contains(&container.ip(&other).to_string()));
    assert_ne!(container.ip(&other), other.gateway());
    other.disconnect(&container);
    assert!(!container.exec(["ip", "-brief", "address"]).contains("eth1"));
}

#[test]
fn a_container_that_crashes_is_restarted_by_its_policy_and_one_that_is_stopped_is_not() {
    let Some(engine) = Engine::start() else { return };
    let script = "trap 'echo reloaded' HUP; trap 'echo stopped; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let container = engine.run(Container::new("crasher").option("--restart=always").command(["sh", "-c", script]));
    container.wait_for_log("up");
    container.crash();
    eventually("the container is restarted", || {
        (container.restart_count() == 1 && container.is_running()).then_some(())
    });

    eventually("the restarted container logs its start", || {
        (container.logs().matches("up").count() == 2).then_some(())
    });
    container.signal("HUP");
    container.wait_for_log("reloaded");
    container.stop();
    container.wait_for_log("stopped");
    assert_eq!(container.wait_for_exit(), 0);
    container.start();
    assert!(container.is_running());
}

#[test]
fn clients_of_a_published_port_have_the_bridges_address() {
    let Some(engine) = Engine::start() else { return };
    let network = engine.network();
    let echo = "printf 'defaults\\n mode http\\n timeout client 5s\\nfrontend echo\\n bind :8080\\nhttp-request return \
                content-type text/plain lf-string %%[src]\\n' >/tmp/cfg; exec haproxy -db -f /tmp/cfg";
    let server = engine
        .run(Container::new("server").network(&network).alias("server").publish(8080).command(["sh", "-c", echo]));
    let neighbour = engine.run(Container::idle("neighbour").network(&network));
    let ask = "curl --silent --retry 50 --retry-delay 1 --retry-all-errors http://server:8080/";
    assert_eq!(neighbour.exec(["sh", "-c", ask]), neighbour.ip(&network).to_string());

    let address = format!("127.0.0.1:{}", server.published_port(8080));
    let mut stream = TcpStream::connect(address).expect("the published port is open");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(&network.gateway().to_string()), "{answer}");
}

#[test]
fn a_volume_is_shared_and_read_only_if_mounted_read_only() {
    let Some(engine) = Engine::start() else { return };
    let volume = engine.volume();
    let writer = engine.run(Container::idle("writer").mount_writable(volume.name(), "/shared"));
    let reader = engine.run(Container::idle("reader").mount(volume.name(), "/shared"));
    writer.exec(["sh", "-c", "echo hello >/shared/file"]);
    assert_eq!(reader.exec(["cat", "/shared/file"]), "hello");
    assert!(!reader.try_exec(["rm", "/shared/file"]).status.success());
}

#[test]
fn the_binary_of_this_build_runs_in_a_container_without_privileges() {
    let Some(engine) = Engine::start() else { return };
    let loopgate = engine.run(Container::loopgate("loopgate", []).option("--user=65532").hardened());
    // Without a command loopgate fails. 126 and 127 would mean that it could not be started.
    assert!(![126, 127].contains(&loopgate.wait_for_exit()), "{}", loopgate.logs());
}
