//! Kubernetes as the source of agents: follows the labelled pods of one namespace by lists and
//! watches of the API server.

pub mod agents;
pub mod api;
pub mod error;
mod object;
pub mod pod;
mod session;
#[cfg(test)]
mod tests;

use futures_util::StreamExt;

use super::follower::{AgentSource, Follower, Update};
use super::source_state::SourceState;
use crate::metrics;
use api::Api;
use error::Error;
pub use object::TokenOwner;
use pod::Pod;
use session::{KubernetesSession, SourceChange};

/// The pods that the API server reports, and whether it can be reached.
pub struct Kubernetes {
    api: Follower<Api>,
    /// The running pods with the label, as the API server reported them last, sorted by name.
    pods: Vec<Pod>,
}

impl AgentSource for Api {
    const NAME: &'static str = "Kubernetes";
    type Session = KubernetesSession;
    type Change = SourceChange;
    type Error = Error;

    fn endpoint(&self) -> String {
        self.name()
    }

    fn open(&self) -> KubernetesSession {
        session::open(self.clone())
    }

    async fn next(session: &mut KubernetesSession) -> Result<SourceChange, Error> {
        session.next().await.unwrap_or(Err(Error::WatchEnded))
    }
}

impl Kubernetes {
    /// Begins to follow `api`.
    pub fn new(api: Api, metrics: metrics::DiscoveryMetrics) -> Self {
        Self { api: Follower::new(api, metrics), pods: Vec::new() }
    }

    /// Returns whether the API server can be reached, with the time of the last change or the
    /// error.
    pub fn state(&self) -> &SourceState {
        self.api.state()
    }

    /// Returns the running pods with the label, as the API server reported them last.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Waits until the pods or the state have changed. Cancel safe: dropping the future loses no
    /// change.
    pub async fn changed(&mut self) {
        loop {
            let changed = match self.api.next_update().await {
                Update::Change(change) => self.apply_change(change),
                Update::Lost => true,
            };
            if changed {
                return;
            }
        }
    }

    /// Applies `change`. Returns whether the pods or the state have changed.
    fn apply_change(&mut self, change: SourceChange) -> bool {
        match change {
            SourceChange::Listed(mut pods) => {
                pods.sort_by(|a, b| a.name.cmp(&b.name));
                let changed = self.api.record_list(pods.len()) || self.pods != pods;
                self.pods = pods;
                changed
            }
            SourceChange::Changed(name, pod) => {
                self.api.record_answer();
                let at = self.pods.binary_search_by(|known| known.name.cmp(&name));
                match (at, pod) {
                    (Ok(at), Some(pod)) if self.pods[at] == pod => return false,
                    (Ok(at), Some(pod)) => self.pods[at] = pod,
                    (Ok(at), None) => drop(self.pods.remove(at)),
                    (Err(at), Some(pod)) => self.pods.insert(at, pod),
                    (Err(_), None) => return false,
                }
                true
            }
        }
    }
}
