//! A session: one subscription to the engine's events, and the lists that the events cause.
//!
//! A session subscribes first and then lists, so that it misses no change. An event causes a list
//! soon after. An event that reports a loss takes effect at once. Only a list can add containers or
//! endpoints.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::future::{BoxFuture, OptionFuture};
use tokio::time::{Instant, sleep_until};

use super::container::{Container, Loss, running_containers};
use super::engine::{DockerEvents, Engine};
use super::error::Error;
use super::images::ImageLabels;
use super::object::UnreadableElement;
use crate::discovery::agent::AgentKind;
use crate::discovery::agent_labels::parse_kind;

/// The delay from an event to the list that it causes. Events come in bursts, so one list serves
/// many.
const SETTLE_DELAY: Duration = Duration::from_millis(25);
/// The interval of lists without an event, in case an event was lost.
const RESYNC: Duration = Duration::from_secs(30);
/// The delay from a session's first list to the second. Engines send the head of `/events` a moment
/// before they subscribe, so the first list may miss a change.
const CONFIRM_DELAY: Duration = Duration::from_millis(500);
/// The interval of checks that the engine still answers, while there are agents by address alone.
const CHECK_INTERVAL: Duration = Duration::from_millis(1500);
/// The timeout of a check that the engine answers. This timeout and [`CHECK_INTERVAL`] together are
/// less than [`ADDRESS_GRACE`](crate::discovery::ADDRESS_GRACE), so that a frozen engine is noticed
/// in time.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a list, as a multiple of the list's duration, so that a burst of events does not
/// keep the engine or loopgate busy with lists.
const PAUSE_FACTOR: u32 = 4;
/// The maximum pause after a list. It delays the discovery of a new agent, but not a loss.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// What a session reports.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceChange {
    /// The running containers, and the entries that could not be parsed.
    Listed(Vec<Container>, Vec<UnreadableElement>),
    /// A loss that an event reported. The list that shows it comes later.
    Lost(Loss),
}

/// The running containers, and the entries that could not be parsed.
type ListResult = (Vec<Container>, Vec<UnreadableElement>);

/// One subscription to the engine's events.
pub struct DockerSession {
    engine: Engine,
    services: Arc<[String]>,
    images: ImageLabels,
    events: Subscription,
    listing: Option<Listing>,
    /// Whether the first list was started.
    has_first_list_started: bool,
    /// When to list next.
    list_due_at: Instant,
    /// The earliest time of the next list, after the pause.
    paused_until: Instant,
    /// Whether there may be agents by address alone, so that checks are needed.
    needs_checks: bool,
    check: Option<BoxFuture<'static, Result<(), Error>>>,
    /// When the engine answered a list or a check last.
    last_response: Instant,
    /// Losses that events have reported and no later event has reversed. A list may not show these
    /// losses yet: Docker Engine 28 disconnects a container from its networks before it stops
    /// listing the container as running.
    pending_losses: BTreeSet<Loss>,
    /// Losses that events reversed since the last list was started. The losses are applied to that
    /// list too, since the list may be from before the loss.
    reversed_losses: Vec<Loss>,
}

enum Subscription {
    Opening(BoxFuture<'static, Result<DockerEvents, Error>>),
    Open(DockerEvents),
}

/// The beginnings of the actions of containers that change nothing that a list shows. Health
/// checks, `docker exec` and enrolment cause some of them frequently.
const IGNORED_ACTIONS: [&str; 10] =
    ["exec_", "health_status", "top", "archive-path", "attach", "detach", "resize", "copy", "export", "commit"];

struct Listing {
    started_at: Instant,
    result: BoxFuture<'static, Result<ListResult, Error>>,
}

/// The effect of an event on the session.
#[derive(Debug, PartialEq, Eq)]
enum EventEffect {
    /// None: the event concerns nothing that a list shows.
    Nothing,
    /// A list is needed.
    Change,
    /// A container has stopped or left a network.
    Loss(Loss),
    /// The container with this id has started, which reverses its losses.
    Start(String),
    /// This loss is reversed: a container has joined the network again.
    Reversed(Loss),
}

impl DockerSession {
    /// Starts to subscribe to events.
    pub fn open(engine: &Engine, services: Arc<[String]>, images: ImageLabels) -> Self {
        let now = Instant::now();
        let subscriber = engine.clone();
        Self {
            engine: engine.clone(),
            services,
            images,
            events: Subscription::Opening(Box::pin(async move { subscriber.subscribe_to_events().await })),
            listing: None,
            has_first_list_started: false,
            list_due_at: now,
            paused_until: now,
            needs_checks: false,
            check: None,
            last_response: now,
            pending_losses: BTreeSet::new(),
            reversed_losses: Vec::new(),
        }
    }

    /// Waits for the next change. Meanwhile lists and checks the engine when that is due. Cancel
    /// safe: dropping the future loses no change.
    ///
    /// # Errors
    /// The error that ended the session.
    pub async fn next_change(&mut self) -> Result<SourceChange, Error> {
        loop {
            let events = match &mut self.events {
                Subscription::Opening(opening) => {
                    self.events = Subscription::Open(opening.await?);
                    continue;
                }
                Subscription::Open(events) => events,
            };
            let may_list = self.listing.is_none();
            let check_at = self.last_response + CHECK_INTERVAL;
            let may_check = self.needs_checks && self.check.is_none();
            let check: OptionFuture<_> = self.check.as_mut().into();
            let listing: OptionFuture<_> = self.listing.as_mut().map(|listing| &mut listing.result).into();
            tokio::select! {
                // Events first: a loss applies to a list that arrives at the same time.
                biased;
                event = events.next_event() => {
                    let event = event?;
                    if let Some(loss) = self.handle_event(&event) {
                        return Ok(SourceChange::Lost(loss));
                    }
                }
                Some(listed) = listing => return self.apply_list(listed),
                Some(checked) = check => {
                    self.check = None;
                    checked?;
                    self.last_response = Instant::now();
                }
                () = sleep_until(self.list_due_at.max(self.paused_until)), if may_list => self.start_list(),
                () = sleep_until(check_at), if may_check => {
                    let engine = self.engine.clone();
                    self.check = Some(Box::pin(async move { engine.check_responding(CHECK_TIMEOUT).await }));
                }
            }
        }
    }

    /// Returns since when the engine can't be reached, after `error` ended the session: since its
    /// last response if it fell silent while checks were made, else since now.
    pub fn lost_since(&self, error: &Error) -> Instant {
        match error {
            Error::Timeout { .. } if self.needs_checks => self.last_response,
            _ => Instant::now(),
        }
    }

    /// Starts to list the containers, sets the time of the next list, and forgets the losses that
    /// were reversed before.
    fn start_list(&mut self) {
        self.reversed_losses.clear();
        let (engine, services, images) = (self.engine.clone(), Arc::clone(&self.services), self.images.clone());
        let list = async move {
            let (mut summaries, unreadable) = engine.list_containers().await?;
            let origins = images.remove_labels_of_images(&engine, &services, &mut summaries).await;
            Ok((running_containers(summaries, origins), unreadable))
        };
        let now = Instant::now();
        self.listing = Some(Listing { started_at: now, result: Box::pin(list) });
        self.list_due_at =
            now + if std::mem::replace(&mut self.has_first_list_started, true) { RESYNC } else { CONFIRM_DELAY };
    }

    /// Returns what a list shows, without the containers and endpoints whose loss it may not show
    /// yet. Sets the pause before the next list, and whether checks are needed.
    ///
    /// # Errors
    /// The list could not be read.
    fn apply_list(&mut self, listed: Result<ListResult, Error>) -> Result<SourceChange, Error> {
        let now = Instant::now();
        if let Some(listing) = self.listing.take() {
            self.paused_until = now + ((now - listing.started_at) * PAUSE_FACTOR).min(LONGEST_PAUSE);
        }
        let (mut containers, unreadable) = listed?;
        self.last_response = now;
        let may_be_address_agent = |container: &Container| match &container.agent {
            Some(label) => parse_kind(label) == Ok(Some(AgentKind::Address)),
            None => container.service.as_ref().is_some_and(|service| self.services.contains(service)),
        };
        self.needs_checks = containers.iter().any(may_be_address_agent);
        // A loss of a container that is not listed needs no record: an event reports if the
        // container starts again.
        self.pending_losses.retain(|loss| containers.iter().any(|container| container.id == *loss.container_id()));
        for loss in self.pending_losses.iter().chain(&self.reversed_losses) {
            loss.remove_from(&mut containers);
        }
        Ok(SourceChange::Listed(containers, unreadable))
    }

    /// Records the effect of one event, and makes a list due soon if one is needed. Returns the
    /// loss that the event reports, if any.
    fn handle_event(&mut self, event: &EventMessage) -> Option<Loss> {
        let effect = effect_of_event(event);
        if effect != EventEffect::Nothing {
            self.list_due_at = self.list_due_at.min(Instant::now() + SETTLE_DELAY);
        }
        match effect {
            EventEffect::Nothing | EventEffect::Change => None,
            EventEffect::Loss(loss) => {
                self.pending_losses.insert(loss.clone());
                Some(loss)
            }
            EventEffect::Start(id) => {
                self.reversed_losses.extend(self.pending_losses.extract_if(.., |loss| *loss.container_id() == id));
                None
            }
            EventEffect::Reversed(loss) => {
                self.reversed_losses.extend(self.pending_losses.take(&loss));
                None
            }
        }
    }
}

/// Returns what `event` changes for the session: a loss at once, a list soon, or nothing.
fn effect_of_event(event: &EventMessage) -> EventEffect {
    let action = event.action.as_deref().unwrap_or_default();
    let id = event.actor.as_ref().and_then(|actor| actor.id.clone());
    match event.typ {
        Some(EventMessageTypeEnum::CONTAINER) => match (action, id) {
            ("die" | "died" | "destroy", Some(id)) => EventEffect::Loss(Loss::Stopped(id)),
            ("start", Some(id)) => EventEffect::Start(id),
            _ if IGNORED_ACTIONS.iter().any(|ignored| action.starts_with(ignored)) => EventEffect::Nothing,
            _ => EventEffect::Change,
        },
        Some(EventMessageTypeEnum::NETWORK) => {
            let container = || event.actor.as_ref()?.attributes.as_ref()?.get("container").cloned();
            match (action, id.zip(container())) {
                ("disconnect", Some((network, container))) => {
                    EventEffect::Loss(Loss::Disconnected { container, network })
                }
                ("connect", Some((network, container))) => {
                    EventEffect::Reversed(Loss::Disconnected { container, network })
                }
                _ => EventEffect::Change,
            }
        }
        _ => EventEffect::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, action: &str) -> EventMessage {
        let text = format!(
            r#"{{"Type":"{kind}","Action":"{action}","Actor":{{"ID":"x","Attributes":{{"container":"c"}}}},"timeNano":1766000000123456789}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_event_reports_a_change_or_a_loss_or_is_ignored() {
        let stopped = || EventEffect::Loss(Loss::Stopped("x".into()));
        let disconnected = || Loss::Disconnected { container: "c".into(), network: "x".into() };
        for (kind, action, expected) in [
            ("container", "start", EventEffect::Start("x".into())),
            ("container", "kill", EventEffect::Change),
            ("container", "pause", EventEffect::Change),
            ("container", "rename", EventEffect::Change),
            ("container", "die", stopped()),
            ("container", "destroy", stopped()),
            ("network", "connect", EventEffect::Reversed(disconnected())),
            ("network", "disconnect", EventEffect::Loss(disconnected())),
            ("network", "create", EventEffect::Change),
            ("container", "exec_create: /bin/sh -c true", EventEffect::Nothing),
            ("container", "exec_die", EventEffect::Nothing),
            ("container", "health_status: healthy", EventEffect::Nothing),
            ("container", "top", EventEffect::Nothing),
            ("container", "archive-path", EventEffect::Nothing),
            ("volume", "mount", EventEffect::Nothing),
            ("image", "pull", EventEffect::Nothing),
        ] {
            assert_eq!(effect_of_event(&event(kind, action)), expected, "{kind} {action}");
        }
    }
}
