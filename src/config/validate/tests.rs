//! Tests of validation: tables of options, each with the problem that it must cause.

use std::path::Path;

use super::super::file;
use super::super::key::KEYS;
use super::super::layer::RawValue;
use super::*;

/// Returns a layer with the options in `words`, such as `gateway=127.0.0.1:1`, on top of the
/// defaults.
fn flags(words: &[&str]) -> Layer {
    let mut layer = Layer::default();
    for word in words {
        let (flag, text) = word.split_once('=').unwrap_or((word, "true"));
        let mut values = layer.get(key_by_flag(flag)).to_vec();
        values.push(RawValue { text: text.into(), origin: Origin::Flag });
        layer.set(key_by_flag(flag), values);
    }
    layer.merged_over(Layer::defaults())
}

fn problems(layer: &Layer) -> Vec<String> {
    to_config(layer).err().map(|error| error.0).unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn the_defaults_are_valid_and_those_of_the_design() {
    let config = Config::default();
    assert_eq!(config.gateway.address.to_string(), "127.0.0.1:18789");
    assert_eq!(config.gateway.external_source.to_string(), "127.0.0.2");
    assert_eq!(config.gateway.agent_sources.to_string(), "127.77.0.0/16");
    assert_eq!(config.listen.on, [parse::listen_on("bridge:18443").unwrap()]);
    assert_eq!(config.listen.own_addresses, OwnAddresses::External);
    assert_eq!(config.admin, Some("127.0.0.1:9180".parse().unwrap()));
    assert_eq!((config.limits.head_bytes, config.limits.head_fields), (64 * 1024, 128));
    assert_eq!(config.limits.idle_timeout.as_secs(), 75);
    assert_eq!(config.limits.drain_timeout.as_secs(), 8);
}

#[test]
fn every_option_is_read() {
    // A text that no option accepts must be a problem of each option, or else that option is never
    // read.
    let mut layer = Layer::default();
    for key in KEYS.iter() {
        // An option for a path accepts any text except an empty one.
        let text = if matches!(key.form, super::super::option::Form::Text("FILE" | "DIR")) { "" } else { "\u{7f} ," };
        layer.set(key, [RawValue { text: text.into(), origin: Origin::Flag }]);
    }
    let problems = problems(&layer.merged_over(Layer::defaults()));
    for key in KEYS.iter() {
        let place = format!("--{}: ", key.flag);
        assert!(problems.iter().any(|problem| problem.starts_with(&place)), "{place}");
    }
}

/// Asserts that each set of options has exactly one problem, with the message beside it.
fn assert_problems(table: &[(&[&str], &str)]) {
    for (words, problem) in table {
        assert_eq!(problems(&flags(words)), [*problem], "{words:?}");
    }
}

#[test]
fn each_problem_of_an_address_is_one_line_that_names_the_option() {
    assert_problems(&[
        (
            &["gateway=10.0.0.1:1"],
            "--gateway: \"10.0.0.1:1\" is not a loopback address (use --allow-remote-gateway to allow it)",
        ),
        (
            &["gateway=[::1]:1"],
            "--gateway: \"[::1]:1\" must be in 127.0.0.0/8, because the lanes differ by IPv4 source address",
        ),
        (
            &["gateway=[::1]:1", "allow-remote-gateway"],
            "--gateway: \"[::1]:1\" must be in 127.0.0.0/8, because the lanes differ by IPv4 source address",
        ),
        (&["gateway=127.0.0.1:0"], "--gateway: \"127.0.0.1:0\" has no port"),
        (&["external-source=10.0.0.1"], "--external-source: \"10.0.0.1\" is not an address in 127.0.0.0/8"),
        (
            &["external-source=127.0.0.1"],
            "--external-source: the external lane needs a source address that local clients don't use",
        ),
        (&["gateway=127.0.0.2:1"], "--gateway: the external lane needs a source address that local clients don't use"),
        (&["external-source=127.77.1.1"], "--external-source: an agent could get the external lane's source address"),
        (&["agent-sources=127.0.0.2"], "--agent-sources: an agent could get the external lane's source address"),
        (
            &["agent-sources=127.0.0.0/31"],
            "--agent-sources: an agent could get the gateway's address as its source address",
        ),
        (&["listen=127.0.0.1:18789"], "--listen: the sidecar can't listen on the gateway's own address"),
        (&["admin=127.0.0.1:18789"], "--admin: the admin listener needs its own address and port"),
        (&["listen=127.0.0.1:9180"], "--listen: the admin listener needs its own address and port"),
        (
            &["listen-plain=bridge:8080"],
            "--listen-plain: needs --trusted-proxy, because only trusted proxies may speak plain HTTP",
        ),
        (
            &["listen-plain=127.0.0.1:18789", "trusted-proxy=172.18.0.2"],
            "--listen-plain: the sidecar can't listen on the gateway's own address",
        ),
        (
            &["listen-plain=127.0.0.1:9180", "trusted-proxy=172.18.0.2"],
            "--listen-plain: the admin listener needs its own address and port",
        ),
        (
            &["listen-plain=10.0.0.5:18443", "trusted-proxy=172.18.0.2"],
            "--listen-plain: 10.0.0.5:18443 of --listen-plain could take the address and port of bridge:18443 \
             (--listen): give each a port of its own",
        ),
    ]);
}

#[test]
fn each_other_problem_is_one_line_that_names_the_option() {
    assert_problems(&[
        (
            &["serve-ca", "tls-cert=/a", "tls-key=/b"],
            "--serve-ca: clients do not need loopgate's CA where the certificate is your own (tls.cert): leave one \
             of the two out",
        ),
        (&["tls-cert=a.pem"], "--tls-cert: needs --tls-key"),
        (&["tls-key=a.pem"], "--tls-key: needs --tls-cert"),
        (&["agent-cidr=0.0.0.0/0"], "--agent-cidr: \"0.0.0.0/0\" would make everyone an agent"),
        (
            &["agent-cidr=10.0.0.0/8", "agent-cidr=10.0.0.0/33"],
            "--agent-cidr: \"10.0.0.0/33\" is not a network such as 172.18.0.0/16",
        ),
        (&["agent-uri=spiffe://a/b"], "--agent-uri: needs --client-ca, which verifies those certificates"),
        (&["inherit-token"], "--inherit-token: needs --token-file or the variable OPENCLAW_GATEWAY_TOKEN"),
        (&["unpair"], "--unpair: needs --token-file or the variable OPENCLAW_GATEWAY_TOKEN"),
        (
            &["unpair", "token-file=t", "docker=off"],
            "--unpair: only Docker or Kubernetes tells when an agent's container, or pod, is removed",
        ),
        (
            &["unpair", "token-file=t", "bind-devices=off"],
            "--unpair: without --bind-devices no device is known to be an agent's",
        ),
        (
            &["proxy-protocol"],
            "--proxy-protocol: needs --trusted-proxy, because only trusted proxies may send a PROXY header",
        ),
        (
            &["unknown-client=127.0.0.1"],
            "--unknown-client: \"127.0.0.1\" is loopback or unspecified: the gateway would treat such a client as \
             local",
        ),
        (
            &["unknown-client=::ffff:127.0.0.1"],
            "--unknown-client: \"::ffff:127.0.0.1\" is loopback or unspecified: the gateway would treat such a client \
             as local",
        ),
        (
            &["unknown-client=0.0.0.0"],
            "--unknown-client: \"0.0.0.0\" is loopback or unspecified: the gateway would treat such a client as local",
        ),
        (&["own-addresses=both"], "--own-addresses: \"both\" is not one of: external, agent"),
        (&["head-bytes=1"], "--head-bytes: \"1\" is not a number from 8192 to 16777216"),
    ]);
}

#[test]
fn valid_values_are_accepted() {
    for words in [
        &["gateway=10.0.0.1:1", "allow-remote-gateway"][..],
        &["gateway=[::ffff:127.0.0.1]:1"],
        &["listen=127.0.0.1:0", "admin=off"],
        &["tls-cert=a.pem", "tls-key=a.key"],
        &["agent-uri=spiffe://a/b", "client-ca=ca.pem"],
        &["inherit-token", "token-file=t"],
        &["unpair", "token-file=t", "bind-devices=report"],
        &["proxy-protocol", "trusted-proxy=172.18.0.2"],
        &["listen-plain=bridge:8080", "listen-plain=127.0.0.9:18443", "trusted-proxy=172.18.0.2"],
        &["drain-timeout=0", "gateway-wait=0"],
    ] {
        assert_eq!(problems(&flags(words)), [""; 0], "{words:?}");
    }
}

#[test]
fn all_problems_are_collected() {
    assert_eq!(problems(&flags(&["gateway=x", "admin=y", "deny=z", "deny=10.0.0.0/8", "tls-cert=c"])).len(), 4);
}

#[test]
fn an_element_of_a_list_in_a_file_is_named_with_its_own_line() {
    let file =
        file::parse("[external]\ndeny = [\n  \"10.0.0.0/8\",\n  \"10.0.0.0/33\",\n]\n", Path::new("etc/loopgate.toml"));
    let problem = "etc/loopgate.toml:4: external.deny: \"10.0.0.0/33\" is not a network such as 172.18.0.0/16";
    assert_eq!(problems(&file.merged_over(Layer::defaults())), [problem]);
}

#[test]
fn path_rules_are_checked() {
    let parsed = |text: &str| to_config(&file::parse(text, Path::new("f")).merged_over(Layer::defaults()));
    let config =
        parsed("[[external.paths]]\nallow = \"/hooks/\"\nmethods = [\"POST\"]\n[[external.paths]]\ndeny = \"/\"\n")
            .unwrap();
    assert_eq!(
        config.external.paths,
        [
            PathRule {
                allow: true,
                prefix: "/hooks/".into(),
                methods: vec![http::Method::POST],
                upgrade: false,
                port: None
            },
            PathRule::deny("/"),
        ]
    );
    let forwarded = parsed("[listen]\nforward = [\"1:3334\"]\n[external]\npaths = [{ deny = \"/\", port = 3334 }]\n");
    assert_eq!(forwarded.unwrap().external.paths[0].port, Some(3334));
    for (rule, message) in [
        ("", "a rule needs either allow or deny"),
        ("deny = \"/\", upgrade = true", "upgrade is for allow rules: a deny rule refuses upgrades in any case"),
        ("allow = \"/a\", deny = \"/b\"", "a rule needs either allow or deny"),
        ("allow = \"hooks\"", "\"hooks\" does not begin with /"),
        ("deny = \"/\", port = 3334", "port 3334 is neither the gateway's own nor one that listen.forward leads to"),
        ("allow = \"/a/../b\"", "\"/a/../b\" has an empty or a dot segment"),
        ("deny = \"/\", methods = [\"get\"]", "\"get\" is not a method such as GET or POST"),
    ] {
        let problems = parsed(&format!("[external]\npaths = [{{ {rule} }}]\n")).unwrap_err();
        assert_eq!(problems.to_string(), format!("f:2: external.paths: {message}"));
    }
}
