//! One list of the pods, and the watch that continues from it.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use tokio::time::{Instant, timeout};

use super::api::{Api, Events};
use super::error::Error;
use super::object::{EventType, PodObject};
use super::pod::Pod;

/// After how long a silent watch is opened anew where it is. The API server sends a bookmark about
/// once a minute, and a frozen one none. With the time for an answer and the grace of agents by
/// address this is less than 90 s.
pub(super) const SILENCE: Duration = Duration::from_secs(70);
/// A watch that ends sooner than this did not end because its time was up.
const SHORTEST: Duration = Duration::from_secs(1);

/// What a session reports.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceChange {
    /// Every running pod; a watch reports changes from here on.
    Listed(Vec<Pod>),
    /// The pod with this name has changed to this, or is no longer one that could be an agent.
    Changed(String, Option<Pod>),
}

/// The changes that a session reports, up to an error that ends it.
pub type Session = BoxStream<'static, Result<SourceChange, Error>>;

enum State {
    New,
    Watching { events: Events, version: String, begun: Instant },
}

/// Lists the pods, and watches them from there for as long as possible. A watch whose time is up is
/// resumed where it ended.
pub fn open(api: Api) -> Session {
    futures_util::stream::try_unfold(State::New, move |state| {
        let api = api.clone();
        async move { next(&api, state).await.map(Some) }
    })
    .boxed()
}

async fn next(api: &Api, state: State) -> Result<(SourceChange, State), Error> {
    let (mut events, mut version, mut begun) = match state {
        State::Watching { events, version, begun } => (events, version, begun),
        State::New => {
            let (pods, version) = list(api).await?;
            // A pod that can't be watched is not known to be there a moment later, so a list alone is not used.
            let events = api.watch(&version).await?;
            return Ok((SourceChange::Listed(pods), State::Watching { events, version, begun: Instant::now() }));
        }
    };
    loop {
        let event = match timeout(SILENCE, events.next()).await {
            Ok(event) => event,
            Err(_) => {
                events = api.watch(&version).await?;
                begun = Instant::now();
                continue;
            }
        };
        match event {
            Some(event) => {
                let event = event?;
                let meta = &event.object.metadata;
                if !meta.resource_version.is_empty() {
                    version.clone_from(&meta.resource_version);
                }
                let name = meta.name.clone();
                let pod = match event.r#type {
                    EventType::Bookmark => continue,
                    EventType::Deleted => None,
                    EventType::Added | EventType::Modified => event.object.running(),
                };
                return Ok((SourceChange::Changed(name, pod), State::Watching { events, version, begun }));
            }
            None if begun.elapsed() < SHORTEST => return Err(Error::WatchEnded),
            None => {
                events = api.watch(&version).await?;
                begun = Instant::now();
            }
        }
    }
}

/// Reads every page of one list, and its version.
async fn list(api: &Api) -> Result<(Vec<Pod>, String), Error> {
    let mut pods = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = api.list(after.as_deref()).await?;
        pods.extend(page.items.unwrap_or_default().into_iter().filter_map(PodObject::running));
        if page.metadata.r#continue.is_empty() {
            return Ok((pods, page.metadata.resource_version));
        }
        after = Some(page.metadata.r#continue);
    }
}
