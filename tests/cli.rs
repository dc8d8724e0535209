//! The command line: exit statuses, and the lines on standard output and standard error.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use loopgate_test_support::sidecar::{binary, free_address, loopgate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command that must exit with status 2, and returns its standard error.
fn run_refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
    stderr(&output)
}

/// Writes a configuration file into `dir`, and returns its path.
fn write_config(dir: &Path, text: &str) -> String {
    let path = dir.join("loopgate.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn a_wrong_value_is_named_on_one_line_with_its_source() {
    let message = "\"10.0.0.1:1\" is not a loopback address (use --allow-remote-gateway to allow it)";
    let flag = run_refused(&mut loopgate(["run", "--gateway", "10.0.0.1:1"]));
    assert_eq!(flag, format!("loopgate: --gateway: {message}\n"));
    let variable = run_refused(loopgate(["run"]).env("LOOPGATE_GATEWAY", "10.0.0.1:1"));
    assert_eq!(variable, format!("loopgate: LOOPGATE_GATEWAY: {message}\n"));
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "# ours\n[gateway]\naddress = \"10.0.0.1:1\"\n");
    let from_file = run_refused(&mut loopgate(["run", "--config", &config]));
    assert_eq!(from_file, format!("loopgate: {config}:3: gateway.address: {message}\n"));
}

#[test]
fn devices_are_listed_and_released() {
    let dir = tempfile::tempdir().unwrap();
    let devices = |arguments: &[&str]| {
        let output =
            loopgate(["devices"]).args(arguments).args(["--state-dir", dir.path().to_str().unwrap()]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout.clone()).unwrap() + &stderr(&output))
    };
    assert_eq!(devices(&[]), (true, "  device  bound to  since\n".into()));
    std::fs::write(
        dir.path().join("devices.json"),
        r#"{"abc1":{"agent":"builder","since":1},"abd2":{"agent":null,"since":1}}"#,
    )
    .unwrap();
    let (_, listed) = devices(&[]);
    assert!(listed.contains("abc1    builder   1970-01-01T00:00:01Z") && listed.contains("abd2    -"), "{listed}");
    let (released, error) = devices(&["release", "zzz"]);
    assert!(!released && error.contains("no bound device has an id that begins with \"zzz\""), "{error}");
    assert_eq!(devices(&["release", "abc"]), (true, String::new()));
    let (_, listed) = devices(&["--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&listed).unwrap()["abc1"]["agent"], serde_json::Value::Null);
}

#[test]
fn an_unknown_option_is_named() {
    let flag = run_refused(&mut loopgate(["run", "--gatway", "127.0.0.1:1"]));
    assert_eq!(flag, "loopgate: unexpected argument '--gatway' found (a similar argument exists: '--gateway')\n");
    let variable = run_refused(loopgate(["run"]).env("LOOPGATE_GATWAY", "127.0.0.1:1"));
    assert_eq!(variable, "loopgate: LOOPGATE_GATWAY: there is no such option\n");
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[gateway]\nadress = \"127.0.0.1:1\"\n");
    let key = run_refused(loopgate(["run"]).env("LOOPGATE_CONFIG", &config));
    assert_eq!(key, format!("loopgate: {config}:2: gateway.adress: there is no such key\n"));
    let missing = run_refused(&mut loopgate(["run", "--config", "/nowhere/loopgate.toml"]));
    assert!(missing.starts_with("loopgate: --config: /nowhere/loopgate.toml: No such file"), "{missing}");
    let command = run_refused(&mut loopgate(["rnu"]));
    assert!(
        command.starts_with("loopgate: unrecognized subcommand 'rnu'") && command.lines().count() == 1,
        "{command}"
    );
}

#[test]
fn a_missing_counterpart_is_named_like_the_option_in_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[tls]\ncert = \"a.pem\"\n");
    assert_eq!(
        run_refused(&mut loopgate(["run", "--config", &config])),
        format!("loopgate: {config}:2: tls.cert: needs tls.key\n")
    );
    let variable = run_refused(loopgate(["run"]).env("LOOPGATE_TLS_KEY", "a.key"));
    assert_eq!(variable, "loopgate: LOOPGATE_TLS_KEY: needs LOOPGATE_TLS_CERT\n");
    assert_eq!(run_refused(&mut loopgate(["run", "--tls-cert", "a.pem"])), "loopgate: --tls-cert: needs --tls-key\n");
}

#[test]
fn a_negative_number_is_an_invalid_value_not_a_flag() {
    let number = run_refused(&mut loopgate(["run", "--max-connections", "-1"]));
    assert_eq!(number, "loopgate: --max-connections: \"-1\" is not a number from 1 to 10000000\n");
    let time = run_refused(&mut loopgate(["run", "--drain-timeout", "-1"]));
    assert!(time.starts_with("loopgate: --drain-timeout: \"-1\" is not a duration"), "{time}");
}

#[test]
fn invalid_values_of_other_commands_are_refused() {
    let listen = run_refused(&mut loopgate(["agent", "--listen", "0.0.0.0:1"]));
    assert!(listen.starts_with("loopgate: --listen: 0.0.0.0:1 is not a loopback address"), "{listen}");
    let name = run_refused(&mut loopgate(["cert", "issue", "--name", "Bad Name/.."]));
    assert!(name.contains("--name") && name.contains("Bad Name/..") && name.lines().count() == 1, "{name}");
    let life = run_refused(&mut loopgate(["cert", "issue", "--name", "robot", "--life", "398d"]));
    assert!(life.contains("--life") && life.contains("is not between 1m and 397d"), "{life}");
}

#[test]
fn a_misspelt_variable_is_refused_by_agent_and_exec() {
    for command in [&["agent"][..], &["exec", "--", "true"]] {
        let mut command = loopgate(command);
        command
            .env("LOOPGATE_GATEWAY", "127.0.0.1:1")
            .env("LOOPGATE_PORT_443_TCP", "tcp://10.96.0.1:443")
            .env("LOOPGATE_SIDECARS", "x:1");
        assert_eq!(run_refused(&mut command), "loopgate: LOOPGATE_SIDECARS: there is no such option\n");
    }
}

#[test]
fn unreadable_files_are_reported_once_with_their_option_and_no_file_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let run = |flags: &[&str]| {
        let always = ["run", "--state-dir", state, "--docker", "off", "--admin", "off", "--listen", "127.0.0.1:0"];
        let output = loopgate([&always, flags].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let files: Vec<_> = dir.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(files.is_empty(), "a failed start leaves {files:?} in the state directory");
        stderr(&output).lines().last().unwrap_or_default().to_owned()
    };
    let message = run(&["--client-ca", "/nope.pem"]);
    assert!(
        message.starts_with("loopgate: can't read the client CA (tls.client_ca): can't read /nope.pem: ")
            && message.matches("No such file").count() == 1,
        "{message}"
    );
    let message = run(&["--tls-cert", "/nope.pem", "--tls-key", "/nope.key"]);
    assert_eq!(
        message,
        "loopgate: tls.cert (--tls-cert): can't read /nope.pem: No such file or directory (os error 2)"
    );
}

#[test]
fn each_error_has_its_own_line() {
    let message =
        run_refused(loopgate(["run", "--gateway", "x", "--admin", "y"]).env("LOOPGATE_ALLOW", "10.0.0.0/8,z"));
    assert_eq!(message.lines().count(), 3, "{message}");
    assert!(message.lines().all(|line| line.starts_with("loopgate: ")), "{message}");
    assert!(message.contains("LOOPGATE_ALLOW: \"z\""), "{message}");
}

#[test]
fn an_unknown_argument_is_refused_on_one_line() {
    let message = run_refused(&mut loopgate(["run", "--log-format", "xml"]));
    assert!(message.contains("--log-format") && message.contains("json") && message.lines().count() == 1, "{message}");
}

#[test]
fn a_number_of_threads_at_which_tokio_would_panic_is_refused() {
    let message = run_refused(loopgate(["run"]).env("TOKIO_WORKER_THREADS", "many"));
    assert_eq!(message, "loopgate: TOKIO_WORKER_THREADS: \"many\" is not a number from 1 to 1024\n");
}

#[test]
fn flags_override_variables_which_override_the_file_which_overrides_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[limits]\nhead_timeout = 1\nidle_timeout = 1\nconnect_timeout = 1\n");
    let mut command = loopgate(["config", "show", "--config", &config, "--head-timeout", "3s"]);
    let output = command.env("LOOPGATE_HEAD_TIMEOUT", "2s").env("LOOPGATE_IDLE_TIMEOUT", "2s").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    for line in [
        "head_timeout = \"3s\" # --head-timeout".to_owned(),
        "idle_timeout = \"2s\" # LOOPGATE_IDLE_TIMEOUT".to_owned(),
        format!("connect_timeout = \"1\" # {config}:4"),
        "request_timeout = \"60s\" # default".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
}

#[test]
fn a_flag_can_turn_off_a_switch_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[log]\naccess = true\n");
    let output = loopgate(["config", "show", "--config", &config, "--access-log=false"]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("access = false # --access-log"), "{shown}");
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let mut command = loopgate(["config", "show"]);
    let output = command.env("LOOPGATE_CONFIG", "").env("LOOPGATE_GATEWAY", "").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(run_refused(&mut loopgate(["config", "show", "--config", ""])).starts_with("loopgate: --config: "));
}

#[test]
fn help_and_version_go_to_standard_output() {
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let output = loopgate(arguments).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
    let bare = run_refused(&mut loopgate([""; 0]));
    assert!(bare.contains("Usage: loopgate"), "{bare}");
}

#[test]
fn a_closed_output_pipe_is_no_error() {
    let mut child = loopgate(["config", "schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn generated_completions_and_manuals_are_complete() {
    for (arguments, expected) in [
        (&["completions", "bash"][..], "_loopgate()"),
        (&["completions", "fish"], "trusted-proxy"),
        (&["man"], ".TH loopgate"),
        (&["config", "example"], "[external]"),
    ] {
        let output = loopgate(arguments).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(expected), "{arguments:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man/pages");
    assert!(loopgate(["man", "--out", pages.to_str().unwrap()]).status().unwrap().success());
    assert!(pages.join("loopgate-run.1").exists());
}

#[test]
fn healthcheck_reports_the_sidecars_answer() {
    for (status, code) in [("200 OK", 0), ("503 Service Unavailable", 1)] {
        let admin = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = admin.local_addr().unwrap().to_string();
        let sidecar = std::thread::spawn(move || {
            let (mut stream, _) = admin.accept().unwrap();
            let mut head = [0; 1024];
            let n = stream.read(&mut head).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 14\r\n\r\ngateway: down\n").unwrap();
            String::from_utf8(head[..n].to_vec()).unwrap()
        });
        let output = loopgate(["healthcheck"]).env("LOOPGATE_ADMIN", &address).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(sidecar.join().unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));
        if code == 1 {
            assert_eq!(
                stderr(&output),
                "loopgate: /readyz answers \"HTTP/1.1 503 Service Unavailable\": gateway: down\n"
            );
        }
    }
}

/// The error message if no sidecar answers at `address`.
fn no_sidecar_at(address: &str) -> String {
    format!(
        "loopgate: no sidecar answers at {address}; run this in its container or pod, with the same --admin: \
         Connection refused (os error 111)\n"
    )
}

#[test]
fn healthcheck_fails_without_an_answer() {
    let address = free_address().to_string();
    let output = loopgate(["healthcheck", "--live", "--admin", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), no_sidecar_at(&address));
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), &format!("admin = \"{address}\"\nunknown = 1\n"));
    let output = loopgate(["healthcheck"]).env("LOOPGATE_CONFIG", config).output().unwrap();
    assert_eq!(stderr(&output), no_sidecar_at(&address));
    let off = loopgate(["healthcheck", "--admin", "off"]).output().unwrap();
    assert_eq!(off.status.code(), Some(1));
}

/// Waits until the process has a handler for SIGTERM, according to its mask in /proc.
fn wait_for_sigterm_handler(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_handled = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap() & (1 << (Signal::SIGTERM as u64 - 1)) != 0
    };
    while !is_handled() {
        assert!(Instant::now() < deadline, "{pid} has no handler for SIGTERM");
        std::thread::yield_now();
    }
}

#[test]
fn pause_reaps_children_and_exits_with_0_on_a_signal() {
    // `exec` makes the shell's child a child of `loopgate pause`, as orphans become children of a
    // container's PID 1.
    let mut child = Command::new("sh").args(["-c", "true & exec \"$0\" pause"]).arg(binary()).spawn().unwrap();
    let pid = child.id();
    wait_for_sigterm_handler(pid);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the child is not reaped");
        std::thread::yield_now();
    }
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn certificates_are_shown_exported_and_issued_from_the_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (state, out) = (dir.path().join("state"), dir.path().join("out"));
    let cert = |arguments: &[&str]| {
        loopgate([&["cert"], arguments].concat()).env("LOOPGATE_STATE_DIR", &state).output().unwrap()
    };
    let missing = cert(&["export"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("no certificate authority") && stderr(&missing).lines().count() == 1,
        "{}",
        stderr(&missing)
    );
    let issued = cert(&["issue", "--name", "robot", "--out", out.to_str().unwrap()]);
    assert!(issued.status.success(), "{}", stderr(&issued));
    assert!(String::from_utf8(issued.stdout).unwrap().contains("spiffe://loopgate.local/agent/robot"));
    let exported = cert(&["export"]);
    assert_eq!(exported.stdout, std::fs::read(out.join("ca.pem")).unwrap());

    for command in ["export", "rotate"] {
        let pair = cert(&[command, "--tls-cert", "a.pem", "--tls-key", "a.key"]);
        assert_eq!((pair.status.code(), pair.stdout), (Some(1), Vec::new()));
        assert!(
            String::from_utf8_lossy(&pair.stderr)
                .contains("the sidecar serves a.pem (tls.cert), which loopgate did not issue")
        );
    }

    let file = out.join("copy.pem");
    let written = cert(&["export", "--out", file.to_str().unwrap()]);
    assert!(written.status.success() && written.stdout.is_empty(), "{}", stderr(&written));
    assert_eq!(std::fs::read(&file).unwrap(), exported.stdout);
    let nowhere = cert(&["export", "--out", out.join("missing/ca.pem").to_str().unwrap()]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(stderr(&nowhere).contains("missing/ca.pem"), "{}", stderr(&nowhere));
}

#[test]
fn a_users_certificate_is_a_pkcs12_file_that_openssl_and_nss_import() {
    let dir = tempfile::tempdir().unwrap();
    let issue = |arguments: &[&str]| {
        let mut command = loopgate([&["cert", "issue"], arguments].concat());
        command.env("LOOPGATE_STATE_DIR", dir.path().join("state")).current_dir(dir.path()).output().unwrap()
    };
    let password = write_config(dir.path(), "correct horse battery\n");
    for encryption in ["3des", "aes256"] {
        let name = format!("{encryption}.p12");
        let given =
            ["--user", "ann@example.com", "--out", &name, "--password-file", &password, "--encryption", encryption];
        let issued = issue(&given);
        assert!(issued.status.success() && issued.stderr.is_empty(), "{}", stderr(&issued));
        assert!(String::from_utf8_lossy(&issued.stdout).contains("names        ann@example.com"));
        assert_eq!(std::fs::metadata(dir.path().join(&name)).unwrap().permissions().mode() & 0o777, 0o600);
        let from = format!("file:{password}");
        let openssl = ["pkcs12", "-info", "-nodes", "-in", &name, "-passin", &from];
        let shown = Command::new("openssl").args(openssl).current_dir(dir.path()).output().expect("openssl");
        assert!(shown.status.success(), "{}", stderr(&shown));
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("friendlyName: ann@example.com") && shown.contains("PRIVATE KEY"), "{shown}");
        assert_eq!(shown.matches("BEGIN CERTIFICATE").count(), 2, "{shown}");
        // Firefox and Chromium import with NSS. It is tested if it is installed.
        let mut nss = Command::new("pk12util");
        match nss.args(["-l", &name, "-w", &password]).current_dir(dir.path()).output() {
            Ok(listed) => {
                assert!(String::from_utf8_lossy(&listed.stdout).contains("ann@example.com"), "{}", stderr(&listed))
            }
            Err(error) => eprintln!("NOT RUN: pk12util: {error}"),
        }
    }

    let generated = issue(&["--user", "bob@example.com"]);
    let message = stderr(&generated);
    let (_, password) = message.trim().split_once("password of this file, shown only now: ").expect("a password");
    assert!(
        password.len() == 29
            && message.lines().count() == 1
            && !String::from_utf8_lossy(&generated.stdout).contains(password)
    );
    let opened = ["pkcs12", "-noout", "-in", "bob@example.com.p12", "-passin", &format!("pass:{password}")];
    assert!(Command::new("openssl").args(opened).current_dir(dir.path()).status().expect("openssl").success());

    let printed = issue(&["--user", "carol@example.com", "--out", "-"]);
    assert!(printed.status.success() && printed.stdout.starts_with(&[0x30]), "{}", stderr(&printed));
    assert!(!dir.path().join("-").exists() && stderr(&printed).contains("serial"));

    std::fs::write(dir.path().join("short"), "short\n").unwrap();
    let short = issue(&["--user", "ann@example.com", "--password-file", "short"]);
    assert!(!short.status.success() && stderr(&short).contains("short holds no password"), "{}", stderr(&short));
    for wrong in [
        &["--user", "ann"][..],
        &["--name", "robot", "--user", "ann@example.com"],
        &["--name", "robot", "--password-file", "x"],
        &[],
    ] {
        let refused = issue(wrong);
        assert_eq!(
            (refused.status.code(), stderr(&refused).lines().count()),
            (Some(2), 1),
            "{wrong:?}: {}",
            stderr(&refused)
        );
    }
}

#[test]
fn an_identity_is_created_once_and_not_if_the_gateway_has_a_database() {
    let state = tempfile::tempdir().unwrap();
    let identity = state.path().join("identity/device.json");
    let create = || {
        let output = loopgate(["pair", "--create-only", "--identity", identity.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(create().starts_with("device "));
    let created = std::fs::read(&identity).unwrap();
    create();
    assert_eq!(std::fs::read(&identity).unwrap(), created);

    std::fs::remove_file(&identity).unwrap();
    std::fs::create_dir(state.path().join("state")).unwrap();
    std::fs::write(state.path().join("state/openclaw.sqlite"), "").unwrap();
    assert!(create().contains("nothing created"));
    assert!(!identity.exists());
}
