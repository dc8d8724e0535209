//! One subscription to the engine's events, and the lists that they cause.
//!
//! It subscribes first, then lists, so that no change falls between. An event causes a list soon after; one that reports what a container
//! has lost takes effect at once. Only a list ever adds anything.

use std::time::Duration;

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, OptionFuture};
use tokio::time::{Instant, sleep_until};

use super::container::{Container, Loss, running};
use super::engine::{Engine, Events};
use super::error::Error;

/// Events come in bursts; one list, this long after the first, answers all of them.
const SETTLE: Duration = Duration::from_millis(25);
/// How often to list anyway, in case an event was lost.
const RESYNC: Duration = Duration::from_secs(30);
/// After this a session's first list is repeated: engines send the head of `/events` a moment before they really subscribe.
const CONFIRM: Duration = Duration::from_millis(500);
/// The pause after a list, as a multiple of the time that it took, so that no burst keeps the engine, or loopgate, busy with lists.
const REST: u32 = 4;
/// The longest such pause. A new agent waits for it, a loss does not.
const LONGEST_REST: Duration = Duration::from_millis(300);

/// What a session reports.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Every running container.
    Listed(Vec<Container>),
    /// What a container has lost, before the list that will show it.
    Lost(Loss),
}

/// One life of the event stream.
pub struct Session {
    engine: Engine,
    events: Events,
    subscribed: bool,
    listing: Option<Listing>,
    /// Whether there was a first list.
    listed_once: bool,
    /// When to list next, once subscribed.
    due: Instant,
    /// The earliest time of the next list.
    rested: Instant,
    /// What was lost while a list was under way, which may not show it yet.
    meanwhile: Vec<Loss>,
}

struct Listing {
    since: Instant,
    answer: BoxFuture<'static, Result<Vec<Container>, Error>>,
}

impl Session {
    /// Begins to subscribe.
    pub fn open(engine: &Engine) -> Self {
        let now = Instant::now();
        let (engine, events) = (engine.clone(), engine.events());
        Self { engine, events, subscribed: false, listing: None, listed_once: false, due: now, rested: now, meanwhile: Vec::new() }
    }

    /// Waits for news. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The session is over.
    pub async fn next(&mut self) -> Result<News, Error> {
        loop {
            let may_list = self.subscribed && self.listing.is_none();
            let listing: OptionFuture<_> = self.listing.as_mut().map(|listing| &mut listing.answer).into();
            tokio::select! {
                // Events first: they may take from a list that is just coming in.
                biased;
                event = self.events.stream.next() => {
                    let event = event.ok_or_else(|| Error::StreamEnded { engine: self.engine.name() })??;
                    if let Some(loss) = self.handle(&event) {
                        return Ok(News::Lost(loss));
                    }
                }
                () = self.events.begun.notified(), if !self.subscribed => self.subscribed = true,
                Some(listed) = listing => return self.listed(listed).map(News::Listed),
                () = sleep_until(self.due.max(self.rested)), if may_list => self.list(),
            }
        }
    }

    fn list(&mut self) {
        let engine = self.engine.clone();
        let answer = async move { Ok(running(engine.list().await?)) };
        let now = Instant::now();
        self.listing = Some(Listing { since: now, answer: Box::pin(answer) });
        self.due = now + if std::mem::replace(&mut self.listed_once, true) { RESYNC } else { CONFIRM };
        self.meanwhile.clear();
    }

    fn listed(&mut self, listed: Result<Vec<Container>, Error>) -> Result<Vec<Container>, Error> {
        let now = Instant::now();
        if let Some(listing) = self.listing.take() {
            self.rested = now + ((now - listing.since) * REST).min(LONGEST_REST);
        }
        let mut containers = listed?;
        for loss in self.meanwhile.drain(..) {
            loss.apply(&mut containers);
        }
        Ok(containers)
    }

    /// Handles one event, and returns what it reports as lost.
    fn handle(&mut self, event: &EventMessage) -> Option<Loss> {
        if !matters(event) {
            return None;
        }
        self.due = self.due.min(Instant::now() + SETTLE);
        let loss = loss(event)?;
        if self.listing.is_some() {
            self.meanwhile.push(loss.clone());
        }
        Some(loss)
    }
}

/// Says whether anything that a list shows may have changed.
fn matters(event: &EventMessage) -> bool {
    let action = event.action.as_deref().unwrap_or_default();
    match event.typ {
        // Caused again and again by health checks, `docker exec` and loopgate's own enrolment.
        Some(EventMessageTypeEnum::CONTAINER) => {
            let noise = ["exec_", "health_status", "top", "archive-path", "attach", "detach", "resize", "copy", "export", "commit"];
            !noise.iter().any(|noise| action.starts_with(noise))
        }
        Some(EventMessageTypeEnum::NETWORK) => true,
        _ => false,
    }
}

/// Returns what `event` reports that a container has lost.
fn loss(event: &EventMessage) -> Option<Loss> {
    let actor = event.actor.as_ref()?;
    let id = actor.id.clone()?;
    match (event.typ?, event.action.as_deref()?) {
        (EventMessageTypeEnum::CONTAINER, "die" | "died" | "destroy") => Some(Loss::Life(id)),
        (EventMessageTypeEnum::NETWORK, "disconnect") => {
            Some(Loss::Network { container: actor.attributes.as_ref()?.get("container")?.clone(), network: id })
        }
        _ => None,
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
    fn an_event_causes_a_list_or_reports_a_loss_or_is_ignored() {
        let life = Some(Loss::Life("x".into()));
        let network = Some(Loss::Network { container: "c".into(), network: "x".into() });
        for (kind, action, relevant, lost) in [
            ("container", "start", true, None),
            ("container", "kill", true, None),
            ("container", "pause", true, None),
            ("container", "rename", true, None),
            ("container", "die", true, life.clone()),
            ("container", "destroy", true, life),
            ("network", "connect", true, None),
            ("network", "disconnect", true, network),
            ("container", "exec_create: /bin/sh -c true", false, None),
            ("container", "exec_die", false, None),
            ("container", "health_status: healthy", false, None),
            ("container", "top", false, None),
            ("container", "archive-path", false, None),
            ("volume", "mount", false, None),
            ("image", "pull", false, None),
        ] {
            let event = event(kind, action);
            assert_eq!(matters(&event), relevant, "{kind} {action}");
            assert_eq!(loss(&event).filter(|_| relevant), lost, "{kind} {action}");
        }
    }
}
