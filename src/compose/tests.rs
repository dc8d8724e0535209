//! Decisions that whole projects (`tests/compose`) do not show by themselves.

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
