//! Requests that a shutdown, a second signal or a reload cuts.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Ends, access_log, count_logged, counts};
use crate::harness::{OUTSIDER, h2_request, request_text};

pub const ENDS_OF_A_SHUTDOWN: [&str; 1] = ["drain_timeout"];

#[tokio::test]
async fn what_a_shutdown_cuts_is_logged_as_such() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--drain-timeout=300ms"], "").await;
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /stalls", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(1).await;
    let wanted = counts(ENDS_OF_A_SHUTDOWN);
    ends.check_spans(&sidecar, &wanted).await;
    assert_eq!(count_logged(&access_log(&sidecar)), wanted);
    sidecar.process().wait_for_log("aborted the connections that were left").await;
}

pub const ENDS_OF_A_SECOND_SIGNAL: [&str; 1] = ["drain_aborted"];

#[tokio::test]
async fn what_a_second_signal_cuts_is_logged_as_such() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--drain-timeout=60s"], "").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = sidecar.connect_h1(OUTSIDER).await;
        client.send(request_text("GET /stalls", "")).await.unwrap();
        clients.push(client);
    }
    let mut h2 = sidecar.connect_h2(OUTSIDER).await;
    let mut responses = Vec::new();
    for path in ["GET /stalls", "GET /stalls", "GET /stalls-halfway", "GET /events"] {
        h2 = h2.ready().await.unwrap();
        responses.push(h2.send_request(h2_request(path, &[]), true).unwrap().0);
    }
    sidecar.gateway.wait_for_requests(8).await;
    sidecar.process().signal(Signal::SIGTERM);
    sidecar.process().wait_for_log("stopping").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let wanted = counts([ENDS_OF_A_SECOND_SIGNAL[0]; 8]);
    ends.check_spans(&sidecar, &wanted).await;
    assert_eq!(count_logged(&access_log(&sidecar)), wanted);
}

pub const ENDS_OF_A_RELOAD: [&str; 1] = ["revoked"];

#[tokio::test]
async fn what_a_reload_forbids_is_logged_as_such() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "[external]\ndeny = []\n").await;
    let mut h1 = sidecar.connect_h1(OUTSIDER).await;
    h1.send(request_text("GET /held", "")).await.unwrap();
    let mut h2 = sidecar.connect_h2(OUTSIDER).await;
    let (held, _) = h2.send_request(h2_request("GET /held", &[]), true).unwrap();
    while sidecar.gateway.requests().iter().filter(|request| request.start_line().contains("/held")).count() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(sidecar.config_file(), format!("[external]\ndeny = [\"{OUTSIDER}\"]\n")).unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    assert!(held.await.is_err());
    let wanted = counts([ENDS_OF_A_RELOAD, ENDS_OF_A_RELOAD].concat());
    ends.check_counts(&sidecar, &wanted).await;
    ends.check_spans(&sidecar, &wanted).await;
}
