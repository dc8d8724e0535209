//! The admin page in Chromium: it is readable without scripts, loads nothing else, does not violate
//! its own content security policy, and fits the screen of a phone.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::openclaw::directory;
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{Missing, find_program, node_modules, run_exclusively};
use loopgate_test_support::sidecar::free_address;

#[test]
fn the_admin_page_fits_in_light_and_dark_on_wide_and_narrow_screens() {
    run_exclusively("real", "the admin page in Chromium", page);
}

fn page() -> Result<(), Missing> {
    let directory = directory("admin-page");
    let modules = node_modules("playwright-1.58.2")?;
    let node = find_program("node")?;
    find_program("chromium")?;
    let gateway = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (gateway, admin) = (gateway.local_addr().expect("an address").to_string(), free_address().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
    command.args([
        "run",
        "--docker",
        "off",
        "--gateway",
        &gateway,
        "--admin",
        &admin,
        "--listen",
        &free_address().to_string(),
        "--state-dir",
    ]);
    command.arg(directory.join("state"));
    let sidecar = Process::start("loopgate", command, &directory.join("loopgate.log"));
    sidecar.wait_until("up", Duration::from_secs(30), || std::net::TcpStream::connect(&admin).is_ok());

    let options =
        json!({"modules": modules, "url": format!("http://{admin}/"), "screenshots": directory.join("screen")});
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/page.mjs");
    let output = Command::new(node).arg(script).arg(options.to_string()).output().expect("node");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let page_views: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(page_views.len(), 4);
    for page_view in &page_views {
        // If the page's policy blocked its style sheet, Chromium would log it, and the background
        // would differ.
        assert_eq!(page_view["complaints"], json!([]), "{page_view:#}");
        assert_eq!(page_view["requests"], json!(["/"]), "{page_view:#}");
        assert_eq!(page_view["overflow"], 0, "{page_view:#}");
        let expected = if page_view["colorScheme"] == "dark" { "rgb(20, 23, 26)" } else { "rgb(246, 247, 249)" };
        assert_eq!(page_view["background"], expected, "{page_view:#}");
        for part in ["loopgate", "Certificate", "Discovery", "Connections", &gateway] {
            assert!(page_view["text"].as_str().is_some_and(|text| text.contains(part)), "{part}: {page_view:#}");
        }
    }
    Ok(())
}
