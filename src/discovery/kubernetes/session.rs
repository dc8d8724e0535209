//! A session: one list of the pods, and the watch that continues from it.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use tokio::time::{Instant, timeout};

use super::api::{Api, WatchEvents};
use super::error::Error;
use super::object::{EventType, PodObject};
use super::pod::Pod;

/// After this time without an event the watch is opened again from the last version. The API server
/// sends a bookmark about once a minute, so a silent one may be frozen. Together with the response
/// timeout and the grace of agents by address this is less than 90 s.
pub(super) const SILENCE: Duration = Duration::from_secs(70);
/// A watch that ends sooner than this has failed: its requested duration can't have elapsed.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// A change that a session reports.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceChange {
    /// All running pods. Later changes come from a watch.
    Listed(Vec<Pod>),
    /// The pod with this name has changed; `None` if it can't be an agent any more.
    Changed(String, Option<Pod>),
}

/// The changes that a session reports, up to an error that ends it.
pub type KubernetesSession = BoxStream<'static, Result<SourceChange, Error>>;

enum WatchState {
    New,
    Watching { events: WatchEvents, version: String, started_at: Instant },
}

/// Lists the pods, then watches them until an error. A watch whose requested duration has elapsed
/// is resumed.
pub fn open(api: Api) -> KubernetesSession {
    futures_util::stream::try_unfold(WatchState::New, move |state| {
        let api = api.clone();
        async move { next_change(&api, state).await.map(Some) }
    })
    .boxed()
}

/// Returns the next change, and the state of the watch after it. A watch that is silent, or that
/// ended after [`SHORTEST_WATCH`] or later, is opened again from the last version.
async fn next_change(api: &Api, state: WatchState) -> Result<(SourceChange, WatchState), Error> {
    let (mut events, mut version, mut started_at) = match state {
        WatchState::Watching { events, version, started_at } => (events, version, started_at),
        WatchState::New => {
            let (pods, version) = list_all_pods(api).await?;
            // A list alone is not used: without a watch no event would report the end of a pod.
            let events = api.watch_pods(&version).await?;
            return Ok((
                SourceChange::Listed(pods),
                WatchState::Watching { events, version, started_at: Instant::now() },
            ));
        }
    };
    loop {
        let event = match timeout(SILENCE, events.next()).await {
            Ok(event) => event,
            Err(_) => {
                events = api.watch_pods(&version).await?;
                started_at = Instant::now();
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
                return Ok((SourceChange::Changed(name, pod), WatchState::Watching { events, version, started_at }));
            }
            None if started_at.elapsed() < SHORTEST_WATCH => return Err(Error::WatchEnded),
            None => {
                events = api.watch_pods(&version).await?;
                started_at = Instant::now();
            }
        }
    }
}

/// Reads all pages of one list. Returns the pods and the list's version.
async fn list_all_pods(api: &Api) -> Result<(Vec<Pod>, String), Error> {
    let mut pods = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = api.list_pods_page(after.as_deref()).await?;
        pods.extend(page.items.unwrap_or_default().into_iter().filter_map(PodObject::into_running_pod));
        if page.metadata.r#continue.is_empty() {
            return Ok((pods, page.metadata.resource_version));
        }
        after = Some(page.metadata.r#continue);
    }
}
