//! Tests with clients that compete for a budget.

use std::net::Ipv4Addr;

use super::*;
use crate::proxy::upstream::stalls::{STALL_RETENTION, STALLED_ONE_IN};
use crate::proxy::upstream::weak_table::MIN_TABLE;

fn budgets(requests: usize, websockets: usize) -> GatewayBudgets {
    let mut config = crate::config::Config::default();
    (config.limits.gateway_requests, config.limits.gateway_websockets) = (requests, websockets);
    GatewayBudgets::new(&config.limits, Arc::default())
}

fn client(budgets: &GatewayBudgets, last: u8) -> Arc<ClientBudget> {
    budgets.for_client(IpAddr::V4(Ipv4Addr::new(203, 0, 113, last)))
}

/// Takes all permits that `client` gets without waiting.
fn take_all(client: &Arc<ClientBudget>) -> Vec<GatewayPermit> {
    std::iter::from_fn(|| client.try_acquire(Purpose::Request)).collect()
}

fn in_five_seconds() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn a_client_gets_its_share_and_twenty_greedy_clients_leave_permits_to_others() {
    let budgets = budgets(128, 16);
    let held: Vec<_> = (1..=20).map(|last| take_all(&client(&budgets, last))).collect();
    assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>()[..8], [56, 28, 14, 7, 4, 2, 1, 1]);
    assert_eq!(take_all(&client(&budgets, 21)).len(), 1, "the last permits are for clients that hold none");
    drop(held);
    assert_eq!(take_all(&client(&budgets, 1)).len(), 56, "every permit was returned");
}

#[test]
fn requests_websockets_and_agents_do_not_count_against_each_other() {
    let budgets = budgets(1, 1);
    let outsider = client(&budgets, 1);
    let _request = outsider.try_acquire(Purpose::Request).unwrap();
    let _websocket = outsider.try_acquire(Purpose::WebSocket).unwrap();
    assert!(outsider.try_acquire(Purpose::WebSocket).is_none());
    let agents: Vec<_> = (1..=2).map(|last| budgets.for_agent(Ipv4Addr::new(127, 77, 0, last))).collect();
    for agent in &agents {
        assert_eq!(
            std::iter::from_fn(|| agent.try_acquire(Purpose::Request).map(std::mem::forget)).count(),
            AGENT_FACTOR
        );
    }
}

#[test]
fn addresses_of_one_ipv6_network_are_one_client() {
    let budgets = budgets(8, 8);
    let of = |ip: &str| budgets.for_client(ip.parse().unwrap());
    let one = of("2001:db8:0:1::5");
    assert!(Arc::ptr_eq(&one, &of("2001:db8:0:1:ffff::9")));
    assert!(!Arc::ptr_eq(&one, &of("2001:db8:0:2::5")));
    drop(one);
    for number in 0..3 * MIN_TABLE as u32 {
        budgets.for_client(IpAddr::V4(Ipv4Addr::from(number)));
    }
    assert!(lock(&budgets.clients).len() <= MIN_TABLE, "clients without a connection are removed");
}

#[tokio::test(start_paused = true)]
async fn clients_take_turns_in_the_queue_and_one_within_its_share_does_not_wait() {
    let budgets = budgets(4, 4);
    let [greedy, other, third] = [1, 2, 3].map(|last| client(&budgets, last));
    let mut held = take_all(&greedy);
    held.extend(take_all(&other));
    held.extend(take_all(&third));
    assert_eq!(held.len(), 4, "the three clients got 2, 1 and 1");
    let order = Mutex::new(Vec::new());
    let wait = async |client: &Arc<ClientBudget>, name| {
        let permit = client.wait_for_permit(Purpose::Request, in_five_seconds()).await.unwrap();
        lock(&order).push(name);
        permit
    };
    let give_back = async {
        for permit in held.drain(..) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(permit);
        }
    };
    let got = tokio::join!(wait(&greedy, "greedy"), wait(&greedy, "greedy"), wait(&other, "other"), give_back);
    assert_eq!(*lock(&order), ["greedy", "other", "greedy"]);
    drop(got);
    assert_eq!(take_all(&greedy).len(), 2, "every permit was returned");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_too_long_or_in_too_long_a_queue_is_refused() {
    let budgets = budgets(2, 2);
    let (one, other) = (client(&budgets, 1), client(&budgets, 2));
    let held = [one.try_acquire(Purpose::Request).unwrap(), other.try_acquire(Purpose::Request).unwrap()];
    let start = Instant::now();
    let refused = one.wait_for_permit(Purpose::Request, in_five_seconds()).await.unwrap_err();
    assert_eq!((refused.option, start.elapsed()), ("limits.gateway_requests", Duration::from_secs(5)));
    let waiting: Vec<_> = std::iter::from_fn(|| Waiter::try_enqueue(&one, Purpose::Request)).collect();
    assert_eq!(waiting.len(), 2 * WAITING_FACTOR / 2, "a client may fill its share of the queue");
    assert!(Waiter::try_enqueue(&other, Purpose::Request).is_some());
    assert_eq!(one.wait_for_permit(Purpose::Request, in_five_seconds()).await.unwrap_err().option, refused.option);
    assert_eq!(
        start.elapsed(),
        Duration::from_secs(5),
        "a request beyond the client's share of the queue is refused at once"
    );
    // Requests that were given up leave nothing behind.
    drop(waiting);
    let queue = &one.budget(Purpose::Request).queue;
    assert!(lock(queue).is_empty() && one.budget(Purpose::Request).waiter_count.load(Ordering::SeqCst) == 0);
    drop(held);
    assert!(one.wait_for_permit(Purpose::Request, in_five_seconds()).await.is_ok());
}

#[test]
fn a_waiting_request_of_this_thread_comes_first_unless_another_has_waited_for_long() {
    let budgets = budgets(8, 8);
    let one = client(&budgets, 1);
    let mut queue = ClientQueue { client: Arc::clone(&one), waiters: VecDeque::new() };
    let other_thread = std::thread::spawn(|| thread::current().id()).join().unwrap();
    let now = Instant::now();
    let mut add = |thread, since| {
        let (sender, receiver) = oneshot::channel();
        queue.waiters.push_back(QueuedWaiter { sender, thread, since });
        receiver
    };
    let this_thread = thread::current().id();
    let _receivers = [add(other_thread, now), add(other_thread, now), add(this_thread, now), add(this_thread, now)];
    let mut next = || queue.pop_next().map(|waiter| waiter.thread);
    assert_eq!([next(), next(), next()], [Some(this_thread), Some(this_thread), Some(other_thread)]);
    let long_ago = now.checked_sub(2 * MAX_PASSED_OVER).unwrap();
    queue.waiters[0].since = long_ago;
    let (sender, _receiver) = oneshot::channel();
    queue.waiters.push_back(QueuedWaiter { sender, thread: this_thread, since: now });
    assert_eq!(queue.pop_next().map(|waiter| waiter.thread), Some(other_thread));
}

#[test]
fn permits_are_neither_lost_nor_doubled_under_contention() {
    let budgets = budgets(8, 8);
    let most = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for last in 0..4 {
            let (client, most) = (client(&budgets, last), &most);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    for round in 0..300 {
                        // In every seventh round the requests give up at once.
                        let three = [(); 3].map(|()| async {
                            let deadline =
                                Instant::now() + Duration::from_millis(if round % 7 == 0 { 0 } else { 5000 });
                            if let Ok(_permit) = client.wait_for_permit(Purpose::Request, deadline).await {
                                most.fetch_max(
                                    client.budget(Purpose::Request).used_permits.load(Ordering::SeqCst),
                                    Ordering::SeqCst,
                                );
                                tokio::task::yield_now().await;
                            }
                        });
                        futures_util::future::join_all(three).await;
                    }
                });
            });
        }
    });
    let budget = &budgets.external.requests;
    assert_eq!((budget.used_permits.load(Ordering::SeqCst), budget.waiter_count.load(Ordering::SeqCst)), (0, 0));
    assert!(most.into_inner() <= 8);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_several_responses_unread_gets_few_permits_for_a_minute() {
    let budgets = budgets(128, 16);
    let mut one = client(&budgets, 1);
    let few = 128 / STALLED_ONE_IN;
    let stall = |permits: Vec<GatewayPermit>| permits.iter().for_each(GatewayPermit::record_stall);
    stall(take_all(&one).into_iter().take(few).collect());
    assert_eq!(take_all(&one).len(), 56, "a few unread responses do not restrict the client");
    stall(take_all(&one));
    assert_eq!(take_all(&one).len(), few);
    assert_eq!(take_all(&client(&budgets, 2)).len(), 56, "another client gets its share");
    assert_eq!(
        std::iter::from_fn(|| one.try_acquire(Purpose::WebSocket)).take(3).count(),
        3,
        "WebSockets are not restricted"
    );
    drop(one);
    one = client(&budgets, 1);
    tokio::time::advance(STALL_RETENTION.checked_sub(Duration::from_millis(2)).unwrap()).await;
    assert_eq!(take_all(&one).len(), few, "the restriction outlives the client's connections");
    tokio::time::advance(Duration::from_millis(4)).await;
    assert_eq!(take_all(&one).len(), 56);
    for last in 0..=u8::MAX {
        stall(take_all(&client(&budgets, last)));
    }
    assert_eq!(lock(&budgets.external.requests.stalled_clients).len(), 256);
    tokio::time::advance(STALL_RETENTION).await;
    stall(take_all(&one));
    assert_eq!(lock(&budgets.external.requests.stalled_clients).len(), 1, "expired clients are removed");

    let agent = budgets.for_agent(Ipv4Addr::new(127, 77, 0, 1));
    stall(take_all(&agent));
    assert_eq!(take_all(&agent).len(), 128 * AGENT_FACTOR);
}
