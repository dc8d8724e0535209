//! Tests of decisions that the whole projects in `tests/compose` do not cover.

use serde_json::json;

use super::*;

fn project_of(gateway: serde_json::Value) -> Project {
    let mut service =
        json!({"image": "openclaw:local", "command": ["openclaw", "gateway"], "networks": {"default": null}});
    service.as_object_mut().unwrap().extend(gateway.as_object().unwrap().clone());
    serde_json::from_value(json!({"services": {"claw": service}})).unwrap()
}

fn plan_of(gateway: serde_json::Value) -> Result<Plan, Vec<Remark>> {
    plan(&project_of(gateway), &Options::default())
}

#[test]
fn loopgate_runs_as_the_gateways_user() {
    let table = [
        (json!({}), Ok("1000:1000")),
        (json!({"user": "node"}), Ok("1000:1000")),
        (json!({"user": "root"}), Ok("0:0")),
        (json!({"user": "1001"}), Ok("1001:1001")),
        (json!({"user": "1001:100"}), Ok("1001:100")),
        (json!({"environment": {"PUID": "99", "PGID": "100"}}), Ok("99:100")),
        (json!({"user": "claw"}), Err("services.claw.user")),
    ];
    for (gateway, expected) in table {
        match (plan_of(gateway.clone()), expected) {
            (Ok(plan), Ok(user)) => assert_eq!(plan.user, user, "{gateway}"),
            (Err(remarks), Err(key)) => assert_eq!(remarks[0].key, key),
            (plan, expected) => panic!("{gateway}: {plan:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn the_gateways_state_is_where_its_variables_or_its_mounts_say() {
    let bind = |source: &str, target: &str| json!({"type": "bind", "source": source, "target": target});
    let table = [
        (json!({}), None),
        (
            json!({"volumes": [bind("/a", "/home/node/.openclaw"), bind("/b", "/home/node/.openclaw/workspace")]}),
            Some(("/a", "/openclaw")),
        ),
        (json!({"volumes": [bind("/a", "/home/node/.openclaw/")]}), Some(("/a", "/openclaw"))),
        (json!({"volumes": [bind("/a", "/home/node")]}), Some(("/a", "/openclaw/.openclaw"))),
        (json!({"volumes": [bind("/a", "/home/nod")]}), None),
        (json!({"volumes": [bind("/a", "/root/.openclaw")]}), Some(("/a", "/openclaw"))),
        (
            json!({"volumes": [bind("/a", "/data")], "environment": {"OPENCLAW_STATE_DIR": "/data/state"}}),
            Some(("/a", "/openclaw/state")),
        ),
        (
            json!({"volumes": [{"type": "volume", "source": "v", "target": "/x/.openclaw"}],
                "environment": {"HOME": "/x"}}),
            Some(("v", "/openclaw")),
        ),
        (json!({"volumes": [{"type": "volume", "target": "/home/node/.openclaw"}]}), None),
        (json!({"volumes": [{"type": "tmpfs", "target": "/home/node/.openclaw"}]}), None),
    ];
    for (gateway, expected) in table {
        let state = plan_of(gateway.clone()).unwrap().state;
        assert_eq!(
            state.as_ref().map(|state| (state.source.as_str(), state.directory.as_str())),
            expected,
            "{gateway}"
        );
    }
}

#[test]
fn the_namespace_is_a_third_containers_unless_the_gateway_has_one_already() {
    let table = [
        (json!({}), Ok((Namespace::Pause, 18443))),
        (json!({"network_mode": "bridge"}), Ok((Namespace::Pause, 18443))),
        (json!({"network_mode": "host"}), Ok((Namespace::Joined("host".into()), 18789))),
        (json!({"network_mode": "service:vpn"}), Ok((Namespace::Joined("service:vpn".into()), 18789))),
        (
            json!({"network_mode": "container:vpn", "environment": {"OPENCLAW_GATEWAY_PORT": "3000"}}),
            Ok((Namespace::Joined("container:vpn".into()), 3000)),
        ),
        (json!({"network_mode": "none"}), Err("services.claw.network_mode")),
        (json!({"links": ["db"]}), Err("services.claw.links")),
    ];
    for (gateway, expected) in table {
        match (plan_of(gateway.clone()), expected) {
            (Ok(plan), Ok(expected)) => assert_eq!((plan.namespace, plan.listen), expected, "{gateway}"),
            (Err(remarks), Err(key)) => assert_eq!(remarks[0].key, key),
            (plan, expected) => panic!("{gateway}: {plan:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn the_url_for_phones_has_the_published_port() {
    let port = |published: &str| json!({"ports": [{"target": 18789, "published": published}]});
    let table: [(_, &[&str], _); 8] = [
        (json!({}), &[], "https://HOST"),
        (json!({}), &["*.example.com", "claw.example.com"], "https://claw.example.com"),
        (port("18789"), &[], "https://HOST:18789"),
        (port("443"), &["claw.example.com"], "https://claw.example.com"),
        (port("8443"), &["10.0.0.5"], "https://10.0.0.5:8443"),
        (port("8000-8005"), &["fd00::5"], "https://[fd00::5]:PORT"),
        (json!({"ports": [{"target": 18790, "published": "18790"}]}), &["claw"], "https://claw"),
        (json!({"network_mode": "host"}), &["claw"], "https://claw:18789"),
    ];
    for (gateway, names, expected) in table {
        let project = project_of(gateway.clone());
        let options = Options { tls_names: names.iter().map(|&name| name.into()).collect(), ..Options::default() };
        assert_eq!(plan(&project, &options).unwrap().public_url, expected, "{gateway} {names:?}");
    }
}

#[test]
fn a_gateway_whose_users_sign_in_at_a_proxy_gets_no_token() {
    let mount = json!([{"type": "bind", "source": "/srv/claw", "target": "/home/node/.openclaw"}]);
    let gateway = json!({"volumes": mount, "environment": {"OPENCLAW_GATEWAY_TOKEN": "hunter2"}});
    let of = |auth: serde_json::Value| Some(SignIn::from_config(&json!({"gateway": {"auth": auth}})));
    let proxy = |header: &str| of(json!({"mode": "trusted-proxy", "trustedProxy": {"userHeader": header}}));
    let cleared = "    environment:\n      OPENCLAW_GATEWAY_TOKEN: \"\"\n";
    let passed = "OPENCLAW_GATEWAY_TOKEN: \"${OPENCLAW_GATEWAY_TOKEN:-}\"";
    let table = [
        (None, true, None),
        (of(json!({"mode": "token"})), true, None),
        (of(json!({})), true, None),
        (proxy("remote-user"), false, Some("LOOPGATE_IDENTITY_HEADER: remote-user")),
        (proxy("X-Forwarded-User"), false, Some("LOOPGATE_CLIENT_CA")),
        (of(json!({"mode": "trusted-proxy"})), false, Some("LOOPGATE_CLIENT_CA")),
    ];
    for (sign_in, has_token, left) in table {
        let options = Options { sign_in: sign_in.clone(), ..Options::default() };
        let plan = plan(&project_of(gateway.clone()), &options).unwrap();
        let file = render::override_file(&plan);
        assert_eq!((file.contains(passed), file.contains(cleared)), (has_token, !has_token), "{sign_in:?}: {file}");
        assert_eq!(file.contains("trustedProxy.allowLoopback true"), !has_token, "{sign_in:?}: {file}");
        assert_eq!(file.contains("--openclaw-config"), sign_in.is_none(), "{sign_in:?}: {file}");
        let said: Vec<&str> = plan.manual_changes.iter().map(|remark| remark.message.as_str()).collect();
        assert_eq!(said.len(), usize::from(left.is_some()), "{said:?}");
        assert!(left.is_none_or(|left| said[0].contains(left)), "{said:?}");
    }
}

#[test]
fn the_gateways_configuration_file_is_found_by_its_mount() {
    let mount =
        |kind: &str, target: &str| json!({"volumes": [{"type": kind, "source": "/srv/claw", "target": target}]});
    let table = [
        (mount("bind", "/home/node/.openclaw"), Some("/srv/claw/openclaw.json")),
        (mount("bind", "/home/node"), Some("/srv/claw/.openclaw/openclaw.json")),
        (mount("volume", "/home/node/.openclaw"), None),
        (json!({}), None),
    ];
    for (gateway, expected) in table {
        let found = openclaw_config(&project_of(gateway.clone()), &Options::default());
        assert_eq!(found.as_deref(), expected.map(std::path::Path::new), "{gateway}");
    }
}

#[test]
fn what_is_not_composes_json_is_an_error_that_names_its_place_and_no_value() {
    let table = [
        ("services:\n  a: {}", "line 1 column 1"),
        ("{}", "has no services"),
        ("[]", "has no services"),
        (r#"{"services": {"a": 1}}"#, "services.a is not"),
        (r#"{"services": {"a": {"command": "s3cret"}}}"#, "services.a.command is not"),
        (r#"{"services": {"a": {"environment": ["T=s3cret"]}}}"#, "services.a.environment is not"),
        (r#"{"services": {"a": {"ports": ["1:2"]}}}"#, "services.a.ports is not"),
    ];
    for (text, expected) in table {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected) && !error.contains("s3cret"), "{text}: {error}");
    }
}
