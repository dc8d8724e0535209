use super::*;

const TIMEOUTS: Timeouts = Timeouts {
    head: Duration::from_secs(10),
    header_block: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    stall: Duration::from_secs(60),
    external_stall: Duration::from_secs(15),
};

#[tokio::test(start_paused = true)]
async fn an_unread_response_of_the_external_lane_has_the_shorter_stall_timeout() {
    let start = Instant::now();
    let activity = Activity::new(Protocol::H1);
    let deadline = || activity.deadline_and_cause(TIMEOUTS).map(|(at, _)| at - start);
    // A request of a browser page on an agent's connection, and the agent's own.
    let (page, agent) = (activity.begin_request(LaneKind::Agent), activity.begin_request(LaneKind::Agent));
    page.set_lane(LaneKind::External);
    agent.mark_pending(start);
    assert_eq!(deadline(), Some(TIMEOUTS.stall));
    page.mark_pending(start);
    assert_eq!(deadline(), Some(TIMEOUTS.external_stall));
    drop(page);
    assert_eq!(deadline(), Some(TIMEOUTS.stall));
    agent.mark_drained();
    assert_eq!(deadline(), None);
}

#[tokio::test(start_paused = true)]
async fn each_header_block_of_h2_has_a_time_of_its_own() {
    let timeouts = TIMEOUTS;
    let start = Instant::now();
    let activity = Activity::new(Protocol::H2);
    let _request = activity.begin_request(LaneKind::Agent);
    // The second of a read, the header block in which it ends, and the deadline after it.
    for (second, stream, deadline) in [
        (0, None, None),
        (5, Some(1), Some(15)),
        (14, Some(1), Some(15)),
        (15, Some(3), Some(25)),
        (20, None, None),
        (21, Some(5), Some(31)),
    ] {
        tokio::time::advance(start + Duration::from_secs(second) - Instant::now()).await;
        activity.set_unfinished_header_block(stream);
        let expected = deadline.map(|at| (start + Duration::from_secs(at), Overdue::HeaderBlock));
        assert_eq!(activity.deadline_and_cause(timeouts), expected, "{second} s");
    }
}

#[tokio::test(start_paused = true)]
async fn deadlines_follow_idleness_a_slow_head_a_request_and_a_stalled_response() {
    let timeouts = TIMEOUTS;
    let start = Instant::now();
    let activity = Activity::new(Protocol::H1);
    assert_eq!(activity.deadline_and_cause(timeouts), Some((start + timeouts.idle, Overdue::Idle)));
    tokio::time::advance(Duration::from_secs(5)).await;
    activity.record_h1_read(true);
    tokio::time::advance(Duration::from_secs(5)).await;
    activity.record_h1_read(true);
    assert_eq!(activity.deadline_and_cause(timeouts), Some((start + Duration::from_secs(15), Overdue::Head)));
    activity.record_h1_read(false);
    let (one, two) = (activity.begin_request(LaneKind::Agent), activity.begin_request(LaneKind::Agent));
    drop(one);
    assert_eq!(activity.deadline_and_cause(timeouts), None);
    two.mark_pending(Instant::now());
    assert_eq!(activity.deadline_and_cause(timeouts), Some((start + Duration::from_secs(70), Overdue::Stall)));
    tokio::time::advance(Duration::from_secs(5)).await;
    activity.record_write_progress();
    assert_eq!(activity.deadline_and_cause(timeouts), Some((start + Duration::from_secs(75), Overdue::Stall)));
    two.mark_drained();
    assert_eq!(activity.deadline_and_cause(timeouts), None, "the gateway is waited for");
    two.mark_pending(Instant::now());
    drop(two);
    assert_eq!(activity.deadline_and_cause(timeouts), Some((start + Duration::from_secs(90), Overdue::Idle)));
    let pipelined = activity.begin_request(LaneKind::Agent);
    activity.record_h1_read(true);
    drop(pipelined);
    assert_eq!(
        activity.deadline_and_cause(timeouts),
        Some((start + Duration::from_secs(25), Overdue::Head)),
        "the next head has begun"
    );
}
