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
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

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

enum WatchState {
    New,
    Watching { events: Events, version: String, started: Instant },
}

/// Lists the pods, and watches them from there for as long as possible. A watch whose time is up is
/// resumed where it ended.
pub fn open(api: Api) -> Session {
    futures_util::stream::try_unfold(WatchState::New, move |state| {
        let api = api.clone();
        async move { next_change(&api, state).await.map(Some) }
    })
    .boxed()
}

async fn next_change(api: &Api, state: WatchState) -> Result<(SourceChange, WatchState), Error> {
    let (mut events, mut version, mut started) = match state {
        WatchState::Watching { events, version, started } => (events, version, started),
        WatchState::New => {
            let (pods, version) = list_all(api).await?;
            // A pod that can't be watched is not known to be there a moment later, so a list alone is not used.
            let events = api.watch(&version).await?;
            return Ok((SourceChange::Listed(pods), WatchState::Watching { events, version, started: Instant::now() }));
        }
    };
    loop {
        let event = match timeout(SILENCE, events.next()).await {
            Ok(event) => event,
            Err(_) => {
                events = api.watch(&version).await?;
                started = Instant::now();
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
                    EventType::Added | EventType::Modified => event.object.into_running_pod(),
                };
                return Ok((SourceChange::Changed(name, pod), WatchState::Watching { events, version, started }));
            }
            None if started.elapsed() < SHORTEST_WATCH => return Err(Error::WatchEnded),
            None => {
                events = api.watch(&version).await?;
                started = Instant::now();
            }
        }
    }
}

/// Reads every page of one list, and its version.
async fn list_all(api: &Api) -> Result<(Vec<Pod>, String), Error> {
    let mut pods = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = api.list(after.as_deref()).await?;
        pods.extend(page.items.unwrap_or_default().into_iter().filter_map(PodObject::into_running_pod));
        if page.metadata.r#continue.is_empty() {
            return Ok((pods, page.metadata.resource_version));
        }
        after = Some(page.metadata.r#continue);
    }
}
