//! Limits concurrent requests at the gateway, and divides the limit fairly among clients.
//!
//! External clients share one budget of permits for requests, and one for WebSockets. In a budget
//! of `limit` permits, of which `free` are not taken, a client that holds `own` permits gets
//! another one if `free > 0` and (`own == 0` or `own < free - limit / 8`). So a single client gets
//! about half of the permits at most (56 of 128), and the last eighth is for clients that have
//! none. A client that left several responses unread until they were reset gets only a few permits
//! for a minute (see `stalls`).
//!
//! A request beyond the client's share waits in a queue, in which clients take turns. Each agent
//! has budgets of its own; agents with the same source address share them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::stalls::Stalls;
use super::weak_table::WeakTable;
use crate::addr::address_or_v6_prefix;
use crate::config::Limits;
use crate::labels::LaneKind;
use crate::metrics::traffic::{GaugeGuard, Traffic};

#[cfg(test)]
mod tests;

/// The request budget of each agent, as a multiple of the budget of all external clients.
const AGENT_FACTOR: usize = 4;
/// The most requests that may wait in the queue of a budget, as a multiple of its limit.
const WAITING_FACTOR: usize = 4;
/// One in this many permits is reserved for clients that hold none, and one in this many places in
/// the queue for clients without a waiting request.
const RESERVED_ONE_IN: usize = 8;
/// The most clients of a budget whose unread responses are remembered after their connections have
/// ended.
const MAX_STALLED: usize = 1024;
/// The least time between two warnings that a budget is exhausted.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// The longest time for which waiting requests of other threads are passed over in favour of this
/// thread's: waking a task of another thread takes a system call.
const MAX_PASSED_OVER: Duration = Duration::from_millis(20);
/// The most waiting requests of a client that are searched for one of this thread.
const MAX_SEARCHED: usize = 64;

/// The purpose of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A request, until its response has been sent.
    Request,
    /// A WebSocket, from its upgrade request until its end.
    WebSocket,
}

/// The error that a budget, or the client's share of it, is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit of concurrent requests at the gateway reached, for this client or for all together ({option})")]
pub struct Exhausted {
    /// The option that sets the limit.
    pub option: &'static str,
}

/// The budgets of all external clients and of all agents.
#[derive(Debug)]
pub struct GatewayBudgets {
    external: BudgetPair,
    /// The limits of requests and of WebSockets.
    limits: (usize, usize),
    /// The external clients that have a connection.
    clients: Mutex<WeakTable<IpAddr, ClientBudget>>,
    agents: Mutex<WeakTable<Ipv4Addr, ClientBudget>>,
    traffic: Arc<Traffic>,
}

/// The budgets that one client takes permits from, and the numbers of permits that it holds.
#[derive(Debug)]
pub struct ClientBudget {
    budgets: BudgetPair,
    requests: AtomicUsize,
    websockets: AtomicUsize,
    stalls: Stalls,
}

/// The right to one request or WebSocket at the gateway, returned when dropped.
#[derive(Debug)]
pub struct GatewayPermit {
    client: Arc<ClientBudget>,
    purpose: Purpose,
    /// Whether the permit is given to a waiting request when it is returned.
    dispatches: AtomicBool,
    _held: GaugeGuard,
}

/// A budget for requests and one for WebSockets.
#[derive(Clone, Debug)]
struct BudgetPair {
    requests: Arc<Budget>,
    websockets: Arc<Budget>,
}

/// A number of permits, and the requests that wait for one.
#[derive(Debug)]
struct Budget {
    option: &'static str,
    limit: usize,
    /// Whether several clients share the budget, so that each may hold only its share.
    is_shared: bool,
    used_permits: AtomicUsize,
    waiter_count: AtomicUsize,
    queue: Mutex<VecDeque<ClientQueue>>,
    held_gauge: Gauge,
    queued_gauge: Gauge,
    epoch: Instant,
    /// Milliseconds after `epoch` at which exhaustion was last logged, plus one; 0 for never.
    warned_at: AtomicU64,
    refusals: AtomicU64,
    /// Clients whose unread responses were reset. They are kept here so that a client that closes
    /// its connections and connects again does not lose its count.
    stalled_clients: Mutex<Vec<Arc<ClientBudget>>>,
}

/// The waiting requests of one client.
#[derive(Debug)]
struct ClientQueue {
    client: Arc<ClientBudget>,
    waiters: VecDeque<QueuedWaiter>,
}

/// A waiting request in the queue.
#[derive(Debug)]
struct QueuedWaiter {
    sender: oneshot::Sender<GatewayPermit>,
    /// The thread that serves the request.
    thread: ThreadId,
    since: Instant,
}

impl GatewayBudgets {
    pub fn new(limits: &Limits, traffic: Arc<Traffic>) -> Self {
        let limits = (limits.gateway_requests, limits.gateway_websockets);
        let external = BudgetPair::new(limits, LaneKind::External, &traffic);
        Self { external, limits, clients: Mutex::default(), agents: Mutex::default(), traffic }
    }

    /// Returns the budget of the external client with the address `ip`. All addresses of an IPv6
    /// /64 network are one client.
    pub fn for_client(&self, ip: IpAddr) -> Arc<ClientBudget> {
        lock(&self.clients).get_or_insert_with(address_or_v6_prefix(ip), || ClientBudget::new(self.external.clone()))
    }

    /// Returns the budget of the agent whose requests reach the gateway from the address `source`.
    pub fn for_agent(&self, source: Ipv4Addr) -> Arc<ClientBudget> {
        let (requests, websockets) = self.limits;
        let limits = (requests.saturating_mul(AGENT_FACTOR), websockets);
        lock(&self.agents)
            .get_or_insert_with(source, || ClientBudget::new(BudgetPair::new(limits, LaneKind::Agent, &self.traffic)))
    }
}

impl BudgetPair {
    /// Creates the budgets of `lane`. `requests` and `websockets` are their limits.
    fn new((requests, websockets): (usize, usize), lane: LaneKind, traffic: &Traffic) -> Self {
        let counters = traffic.lane(lane);
        let is_shared = lane == LaneKind::External;
        let budget = |option, limit, held_gauge: &Gauge| {
            Arc::new(Budget {
                option,
                limit,
                is_shared,
                used_permits: AtomicUsize::new(0),
                waiter_count: AtomicUsize::new(0),
                queue: Mutex::default(),
                held_gauge: held_gauge.clone(),
                queued_gauge: counters.waiting_requests.clone(),
                epoch: Instant::now(),
                warned_at: AtomicU64::new(0),
                refusals: AtomicU64::new(0),
                stalled_clients: Mutex::default(),
            })
        };
        Self {
            requests: budget("limits.gateway_requests", requests, &counters.requests_in_flight),
            websockets: budget("limits.gateway_websockets", websockets, &counters.websockets),
        }
    }
}

impl ClientBudget {
    fn new(budgets: BudgetPair) -> Self {
        Self { budgets, requests: AtomicUsize::new(0), websockets: AtomicUsize::new(0), stalls: Stalls::default() }
    }

    fn budget(&self, purpose: Purpose) -> &Arc<Budget> {
        match purpose {
            Purpose::Request => &self.budgets.requests,
            Purpose::WebSocket => &self.budgets.websockets,
        }
    }

    fn permits_held(&self, purpose: Purpose) -> &AtomicUsize {
        match purpose {
            Purpose::Request => &self.requests,
            Purpose::WebSocket => &self.websockets,
        }
    }

    /// Takes a permit if one is free, within the client's share, and within the client's limit
    /// after unread responses. Takes no lock: threads that do so at once may exceed the client's
    /// share and its limit by one permit each; the budget's limit always holds.
    pub fn try_acquire(self: &Arc<Self>, purpose: Purpose) -> Option<GatewayPermit> {
        let (budget, held) = (self.budget(purpose), self.permits_held(purpose));
        let max_held = match purpose {
            Purpose::Request => self.stalls.most_permits(budget.limit, || budget.now_millis()),
            Purpose::WebSocket => usize::MAX,
        };
        let mut used = budget.used_permits.load(Ordering::SeqCst);
        loop {
            let free = budget.limit.saturating_sub(used);
            if held.load(Ordering::SeqCst) >= max_held {
                return None;
            }
            if !budget.may_have_one_more(budget.limit, free, held.load(Ordering::SeqCst)) {
                return None;
            }
            match budget.used_permits.compare_exchange_weak(used, used + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => used = now,
            }
        }
        held.fetch_add(1, Ordering::SeqCst);
        let held_guard = GaugeGuard::new(&budget.held_gauge);
        Some(GatewayPermit { client: Arc::clone(self), purpose, dispatches: AtomicBool::new(true), _held: held_guard })
    }

    /// Records that a response was reset because the client did not read it. The count outlives the
    /// client's connections. Has no effect for an agent.
    fn record_stall(self: &Arc<Self>) {
        let budget = &self.budgets.requests;
        let now = budget.now_millis();
        if !budget.is_shared {
            return;
        }
        let is_first = self.stalls.record_stall(now);
        if !is_first {
            return;
        }
        // Declared before the lock, so that the clients are dropped after it is released.
        let mut forgotten = Vec::new();
        let mut stalled = lock(&budget.stalled_clients);
        let is_old = |client: &mut Arc<Self>| client.stalls.has_expired(now) || Arc::ptr_eq(client, self);
        forgotten.extend(stalled.extract_if(.., is_old));
        if stalled.len() >= MAX_STALLED {
            // The table is full: the client added last is forgotten. Its count then ends with its
            // connections.
            forgotten.extend(stalled.pop());
        }
        stalled.push(Arc::clone(self));
        drop(stalled);
    }

    /// Waits for a permit until `deadline`.
    ///
    /// # Errors
    /// No permit was free in time, or too many requests wait already.
    pub async fn wait_for_permit(
        self: &Arc<Self>,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<GatewayPermit, Exhausted> {
        let budget = self.budget(purpose);
        let Some(mut waiter) = Waiter::try_enqueue(self, purpose) else { return Err(budget.count_refusal()) };
        // A permit may have been returned just before the waiter was added to the queue.
        budget.give_free_permits(purpose);
        match timeout_at(deadline, &mut waiter.receiver).await {
            Ok(Ok(permit)) => {
                waiter.is_queued = false;
                Ok(permit)
            }
            _ => Err(budget.count_refusal()),
        }
    }
}

/// A request that waits for a permit; removed from the queue when dropped.
struct Waiter {
    client: Arc<ClientBudget>,
    purpose: Purpose,
    receiver: oneshot::Receiver<GatewayPermit>,
    /// Whether the queue may still hold the request. It does not once the request got a permit.
    is_queued: bool,
    _queued: GaugeGuard,
}

impl Waiter {
    /// Adds a request of `client` to the queue; `None` if too many wait. The places in the queue
    /// are divided among clients by the same rule as permits.
    fn try_enqueue(client: &Arc<ClientBudget>, purpose: Purpose) -> Option<Self> {
        let budget = client.budget(purpose);
        let (sender, receiver) = oneshot::channel();
        let mut queue = lock(&budget.queue);
        let places = budget.limit.saturating_mul(WAITING_FACTOR);
        let free = places.saturating_sub(budget.waiter_count.load(Ordering::SeqCst));
        let own = queue.iter_mut().find(|queue| Arc::ptr_eq(&queue.client, client));
        let waiting = own.as_ref().map_or(0, |own| own.waiters.len());
        if !budget.may_have_one_more(places, free, waiting) {
            return None;
        }
        let waiter = QueuedWaiter { sender, thread: thread::current().id(), since: Instant::now() };
        match own {
            Some(own) => own.waiters.push_back(waiter),
            None => queue.push_back(ClientQueue { client: Arc::clone(client), waiters: [waiter].into() }),
        }
        budget.waiter_count.fetch_add(1, Ordering::SeqCst);
        Some(Self {
            client: Arc::clone(client),
            purpose,
            receiver,
            is_queued: true,
            _queued: GaugeGuard::new(&budget.queued_gauge),
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.is_queued {
            return;
        }
        self.receiver.close();
        let budget = self.client.budget(self.purpose);
        let mut queue = lock(&budget.queue);
        if let Some(index) = queue.iter().position(|queue| Arc::ptr_eq(&queue.client, &self.client)) {
            let waiters = &mut queue[index].waiters;
            let before = waiters.len();
            waiters.retain(|waiter| !waiter.sender.is_closed());
            budget.waiter_count.fetch_sub(before - waiters.len(), Ordering::SeqCst);
            if waiters.is_empty() {
                queue.remove(index);
            }
        }
    }
}

impl ClientQueue {
    /// Removes the next request: the first one of this thread, or the very first one if it has
    /// waited for longer than [`MAX_PASSED_OVER`].
    fn pop_next(&mut self) -> Option<QueuedWaiter> {
        let first = self.waiters.front()?;
        let this_thread = thread::current().id();
        let is_own = |waiter: &QueuedWaiter| waiter.thread == this_thread;
        if is_own(first) || first.since.elapsed() > MAX_PASSED_OVER {
            return self.waiters.pop_front();
        }
        let own = self.waiters.iter().take(MAX_SEARCHED).position(is_own);
        self.waiters.remove(own.unwrap_or(0))
    }
}

impl Budget {
    /// Returns whether a client that holds `own` of `limit` permits or places may have one more
    /// while `free` are left.
    fn may_have_one_more(&self, limit: usize, free: usize, own: usize) -> bool {
        free > 0 && (!self.is_shared || own == 0 || own < free.saturating_sub(limit / RESERVED_ONE_IN))
    }

    /// Gives free permits to waiting requests. Clients take turns.
    fn give_free_permits(&self, purpose: Purpose) {
        let mut queue = lock(&self.queue);
        let mut ineligible = 0;
        while ineligible < queue.len() {
            let Some(mut next) = queue.pop_front() else { return };
            let Some(permit) = next.client.try_acquire(purpose) else {
                ineligible += 1;
                queue.push_back(next);
                continue;
            };
            ineligible = 0;
            if let Some(unused) = self.give_to_next(permit, &mut next) {
                // Its drop must not dispatch: the queue is locked here, and this loop gives the
                // permit to the next client.
                unused.dispatches.store(false, Ordering::Relaxed);
            }
            if !next.waiters.is_empty() {
                queue.push_back(next);
            }
        }
    }

    /// Gives `permit` to the next request of `queue` that still waits; returns it if there is none.
    fn give_to_next(&self, mut permit: GatewayPermit, queue: &mut ClientQueue) -> Option<GatewayPermit> {
        while let Some(waiter) = queue.pop_next() {
            self.waiter_count.fetch_sub(1, Ordering::SeqCst);
            // The channel returns the permit if the request was given up meanwhile.
            permit = waiter.sender.send(permit).err()?;
        }
        Some(permit)
    }

    /// Returns the time since `epoch` in milliseconds.
    fn now_millis(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// Counts a request that gets no permit; returns the error. Logs a warning with the number of
    /// such requests, at most one every [`WARN_INTERVAL`].
    fn count_refusal(&self) -> Exhausted {
        let refused = self.refusals.fetch_add(1, Ordering::Relaxed) + 1;
        let now = self.now_millis();
        let warned_at = self.warned_at.load(Ordering::Relaxed);
        let is_due =
            warned_at == 0 || now + 1 >= warned_at + u64::try_from(WARN_INTERVAL.as_millis()).unwrap_or(u64::MAX);
        if is_due && self.warned_at.compare_exchange(warned_at, now + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.refusals.fetch_sub(refused, Ordering::Relaxed);
            let clients = if self.is_shared { "external" } else { "agent" };
            warn!(
                limit = self.limit,
                option = self.option,
                clients,
                refused,
                "too many requests or WebSockets at the gateway, of one client or of all; answering 503"
            );
        }
        Exhausted { option: self.option }
    }
}

impl GatewayPermit {
    /// Records that the response to the request is reset because the client does not read it.
    pub fn record_stall(&self) {
        if self.purpose == Purpose::Request {
            self.client.record_stall();
        }
    }
}

impl Drop for GatewayPermit {
    fn drop(&mut self) {
        self.client.permits_held(self.purpose).fetch_sub(1, Ordering::SeqCst);
        let budget = self.client.budget(self.purpose);
        budget.used_permits.fetch_sub(1, Ordering::SeqCst);
        if budget.waiter_count.load(Ordering::SeqCst) > 0 && self.dispatches.load(Ordering::Relaxed) {
            budget.give_free_permits(self.purpose);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
