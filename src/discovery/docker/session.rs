//! One subscription to the engine's events, and the lists that they cause.
//!
//! It subscribes first, then lists, so that no change falls between. An event causes a list soon
//! after; one that reports what a container has lost takes effect at once. Only a list ever adds
//! anything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::future::{BoxFuture, OptionFuture};
use tokio::time::{Instant, sleep_until};

use super::container::{Container, Loss, running};
use super::engine::{Engine, Events};
use super::error::Error;
use super::images::Images;
use super::object::Unreadable;
use crate::discovery::agent::AgentKind;
use crate::discovery::agent_labels::kind;

/// Events come in bursts; one list, this long after the first, answers all of them.
const SETTLE: Duration = Duration::from_millis(25);
/// How often to list anyway, in case an event was lost.
const RESYNC: Duration = Duration::from_secs(30);
/// How long after a session's first list it is repeated: engines send the head of `/events` a moment
/// before they really subscribe.
const CONFIRM: Duration = Duration::from_millis(500);
/// How often to ask whether the engine still answers, while an address alone makes an agent.
const CHECK: Duration = Duration::from_millis(1500);
/// How long that answer may take. With [`CHECK`] it is less than
/// [`ADDRESS_GRACE`](crate::discovery::ADDRESS_GRACE), so that a frozen engine is noticed before
/// its last answer is that old.
const CHECK_ANSWER: Duration = Duration::from_secs(2);
/// The pause after a list, as a multiple of the time that it took, so that no burst keeps the
/// engine, or loopgate, busy with lists.
const PAUSE_FACTOR: u32 = 4;
/// The longest such pause. A new agent waits for it, a loss does not.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// What a session reports.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceChange {
    /// Every running container, and those that can't be read.
    Listed(Vec<Container>, Vec<Unreadable>),
    /// What a container has lost, before the list that will show it.
    Lost(Loss),
}

/// Every running container, and those that can't be read.
type Listed = (Vec<Container>, Vec<Unreadable>);

/// One subscription to the engine's events.
pub struct Session {
    engine: Engine,
    services: Arc<[String]>,
    images: Images,
    events: Subscription,
    listing: Option<Listing>,
    /// Whether there was a first list.
    listed_once: bool,
    /// When to list next, once subscribed.
    due: Instant,
    /// The earliest time of the next list.
    paused_until: Instant,
    /// Whether an address alone makes an agent, so that the engine must go on answering.
    is_checked: bool,
    check: Option<BoxFuture<'static, Result<(), Error>>>,
    /// When the engine last answered a list or a check.
    answered: Instant,
    /// Losses that events reported and have not reversed. A list may not show them yet: engine 28
    /// takes a container off its networks before it is no longer running.
    lost: BTreeSet<Loss>,
    /// What was regained while a list was under way, which may show it as it was before the loss.
    regained: Vec<Loss>,
}

enum Subscription {
    Opening(BoxFuture<'static, Result<Events, Error>>),
    Open(Events),
}

struct Listing {
    since: Instant,
    answer: BoxFuture<'static, Result<Listed, Error>>,
}

/// What an event means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing that a list shows may have changed.
    Nothing,
    /// Something has changed.
    Change,
    /// A container has lost something.
    Loss(Loss),
    /// The container with this id has started.
    Start(String),
    /// A container has joined a network, which ends a loss of it.
    Gain(Loss),
}

impl Session {
    /// Begins to subscribe.
    pub fn open(engine: &Engine, services: Arc<[String]>, images: Images) -> Self {
        let now = Instant::now();
        let subscriber = engine.clone();
        Self {
            engine: engine.clone(),
            services,
            images,
            events: Subscription::Opening(Box::pin(async move { subscriber.events().await })),
            listing: None,
            listed_once: false,
            due: now,
            paused_until: now,
            is_checked: false,
            check: None,
            answered: now,
            lost: BTreeSet::new(),
            regained: Vec::new(),
        }
    }

    /// Waits for the next change. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The session is over.
    pub async fn next(&mut self) -> Result<SourceChange, Error> {
        loop {
            let events = match &mut self.events {
                Subscription::Opening(opening) => {
                    self.events = Subscription::Open(opening.await?);
                    continue;
                }
                Subscription::Open(events) => events,
            };
            let may_list = self.listing.is_none();
            let check_at = self.answered + CHECK;
            let may_check = self.is_checked && self.check.is_none();
            let check: OptionFuture<_> = self.check.as_mut().into();
            let listing: OptionFuture<_> = self.listing.as_mut().map(|listing| &mut listing.answer).into();
            tokio::select! {
                // Events first: they may take from a list that is just coming in.
                biased;
                event = events.next() => {
                    let event = event?;
                    if let Some(loss) = self.handle(&event) {
                        return Ok(SourceChange::Lost(loss));
                    }
                }
                Some(listed) = listing => return self.apply_list(listed),
                Some(checked) = check => {
                    self.check = None;
                    checked?;
                    self.answered = Instant::now();
                }
                () = sleep_until(self.due.max(self.paused_until)), if may_list => self.list(),
                () = sleep_until(check_at), if may_check => {
                    let engine = self.engine.clone();
                    self.check = Some(Box::pin(async move { engine.check(CHECK_ANSWER).await }));
                }
            }
        }
    }

    /// Returns since when the engine has been out of reach, where the session ended by `error`.
    pub fn lost_since(&self, error: &Error) -> Instant {
        match error {
            Error::Timeout { .. } if self.is_checked => self.answered,
            _ => Instant::now(),
        }
    }

    fn list(&mut self) {
        self.regained.clear();
        let (engine, services, images) = (self.engine.clone(), Arc::clone(&self.services), self.images.clone());
        let answer = async move {
            let (mut summaries, unreadable) = engine.list().await?;
            let origins = images.compare(&engine, &services, &mut summaries).await;
            Ok((running(summaries, origins), unreadable))
        };
        let now = Instant::now();
        self.listing = Some(Listing { since: now, answer: Box::pin(answer) });
        self.due = now + if std::mem::replace(&mut self.listed_once, true) { RESYNC } else { CONFIRM };
    }

    fn apply_list(&mut self, listed: Result<Listed, Error>) -> Result<SourceChange, Error> {
        let now = Instant::now();
        if let Some(listing) = self.listing.take() {
            self.paused_until = now + ((now - listing.since) * PAUSE_FACTOR).min(LONGEST_PAUSE);
        }
        let (mut containers, unreadable) = listed?;
        self.answered = now;
        let by_address = |container: &Container| match &container.agent {
            Some(label) => kind(label) == Ok(Some(AgentKind::Address)),
            None => container.service.as_ref().is_some_and(|service| self.services.contains(service)),
        };
        self.is_checked = containers.iter().any(by_address);
        // A container that is no longer listed never comes back without an event.
        self.lost.retain(|loss| containers.iter().any(|container| container.id == *loss.container()));
        for loss in self.lost.iter().chain(&self.regained) {
            loss.apply(&mut containers);
        }
        Ok(SourceChange::Listed(containers, unreadable))
    }

    /// Handles one event, and returns what it reports as lost.
    fn handle(&mut self, event: &EventMessage) -> Option<Loss> {
        let meaning = meaning(event);
        if meaning != Meaning::Nothing {
            self.due = self.due.min(Instant::now() + SETTLE);
        }
        match meaning {
            Meaning::Nothing | Meaning::Change => None,
            Meaning::Loss(loss) => {
                self.lost.insert(loss.clone());
                Some(loss)
            }
            Meaning::Start(id) => {
                self.regained.extend(self.lost.extract_if(.., |loss| *loss.container() == id));
                None
            }
            Meaning::Gain(loss) => {
                self.regained.extend(self.lost.take(&loss));
                None
            }
        }
    }
}

/// Returns what `event` means.
fn meaning(event: &EventMessage) -> Meaning {
    let action = event.action.as_deref().unwrap_or_default();
    let id = event.actor.as_ref().and_then(|actor| actor.id.clone());
    match event.typ {
        Some(EventMessageTypeEnum::CONTAINER) => match (action, id) {
            ("die" | "died" | "destroy", Some(id)) => Meaning::Loss(Loss::Life(id)),
            ("start", Some(id)) => Meaning::Start(id),
            // Caused again and again by health checks, `docker exec` and loopgate's own enrolment.
            _ if [
                "exec_",
                "health_status",
                "top",
                "archive-path",
                "attach",
                "detach",
                "resize",
                "copy",
                "export",
                "commit",
            ]
            .iter()
            .any(|noise| action.starts_with(noise)) =>
            {
                Meaning::Nothing
            }
            _ => Meaning::Change,
        },
        Some(EventMessageTypeEnum::NETWORK) => {
            let container = || event.actor.as_ref()?.attributes.as_ref()?.get("container").cloned();
            match (action, id.zip(container())) {
                ("disconnect", Some((network, container))) => Meaning::Loss(Loss::Network { container, network }),
                ("connect", Some((network, container))) => Meaning::Gain(Loss::Network { container, network }),
                _ => Meaning::Change,
            }
        }
        _ => Meaning::Nothing,
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
        let life = || Meaning::Loss(Loss::Life("x".into()));
        let network = || Loss::Network { container: "c".into(), network: "x".into() };
        for (kind, action, expected) in [
            ("container", "start", Meaning::Start("x".into())),
            ("container", "kill", Meaning::Change),
            ("container", "pause", Meaning::Change),
            ("container", "rename", Meaning::Change),
            ("container", "die", life()),
            ("container", "destroy", life()),
            ("network", "connect", Meaning::Gain(network())),
            ("network", "disconnect", Meaning::Loss(network())),
            ("network", "create", Meaning::Change),
            ("container", "exec_create: /bin/sh -c true", Meaning::Nothing),
            ("container", "exec_die", Meaning::Nothing),
            ("container", "health_status: healthy", Meaning::Nothing),
            ("container", "top", Meaning::Nothing),
            ("container", "archive-path", Meaning::Nothing),
            ("volume", "mount", Meaning::Nothing),
            ("image", "pull", Meaning::Nothing),
        ] {
            assert_eq!(meaning(&event(kind, action)), expected, "{kind} {action}");
        }
    }
}
