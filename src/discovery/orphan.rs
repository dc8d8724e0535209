//! Detects that the owner of this network namespace stopped, which leaves the containers that share
//! the namespace with nothing but loopback.
//!
//! Only a restart attaches a container to the owner's new namespace. But while the owner does not
//! run, engines refuse to start the container, and never try again. So this process exits only when
//! the owner runs again.

use std::time::Duration;

use tokio::time::Instant;

/// The exit status after [`NamespaceState::Replaced`]: `EX_TEMPFAIL` of sysexits.h, "try again".
pub const EXIT_ORPHANED: u8 = 75;
/// The time for which the owner must have been running again. An owner that crashes sooner could
/// stop before the engine has restarted this process.
const STEADY_OWNER: Duration = Duration::from_secs(1);
/// The time to wait if nothing is known of the owner.
const UNKNOWN_OWNER_WAIT: Duration = Duration::from_secs(60);

/// Whether the owner of this network namespace still runs in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespaceState {
    /// The owner runs in this namespace, or nothing shows that it does not.
    #[default]
    Attached,
    /// The interfaces are gone, which happens when the owner stops. Exiting now would be final:
    /// engines refuse to start a container that joins the namespace of one that does not run.
    Orphaned,
    /// The owner runs again, in another namespace. The process must exit with [`EXIT_ORPHANED`] to
    /// be restarted there.
    Replaced,
}

/// The observed state of a namespace and its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation<'a> {
    /// Whether the namespace has an interface besides loopback.
    pub has_interfaces: bool,
    /// Whether the namespace is a container's. A machine that lost its network has no owner to wait
    /// for.
    pub is_container: bool,
    /// Whether the owner runs.
    pub life: OwnerLife<'a>,
}

/// Whether the owner runs, according to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerLife<'a> {
    /// The owner, or the engine's state, is not known.
    Unknown,
    /// The owner does not run.
    Ended,
    /// The owner runs.
    Running {
        /// The time of the owner's last start, if it is known.
        started_at: Option<&'a str>,
    },
}

/// Detects from a series of observations that the namespace has lost its owner.
#[derive(Debug, Default)]
pub struct OrphanWatch {
    /// Whether there ever was an interface besides loopback: a namespace may begin without one.
    had_interface: bool,
    orphaned_since: Option<Instant>,
    /// The start time of the owner when the namespace last had interfaces.
    owner_started_at: Option<String>,
    /// Whether the engine has reported since then that the owner ended.
    has_owner_ended: bool,
    /// Since when the owner has been running again.
    running_again_since: Option<Instant>,
}

impl OrphanWatch {
    /// Returns whether the interfaces are gone.
    pub fn is_orphaned(&self) -> bool {
        self.orphaned_since.is_some()
    }

    /// Records one observation, and returns the namespace's state that follows from all
    /// observations.
    pub fn observe(&mut self, observation: &Observation<'_>, now: Instant) -> NamespaceState {
        if observation.life == OwnerLife::Ended {
            self.has_owner_ended = true;
        }
        if observation.has_interfaces {
            self.record_attached(observation);
            return NamespaceState::Attached;
        }
        if !self.had_interface {
            return NamespaceState::Attached;
        }
        let waited = now - *self.orphaned_since.get_or_insert(now);
        let runs_anew = match observation.life {
            OwnerLife::Running { started_at } => match (started_at, &self.owner_started_at) {
                _ if self.has_owner_ended => Some(true),
                (Some(started_at), Some(before)) => Some(started_at != before),
                _ => None,
            },
            OwnerLife::Ended => Some(false),
            OwnerLife::Unknown => None,
        };
        self.running_again_since = self.running_again_since.or(Some(now)).filter(|_| runs_anew == Some(true));
        let is_replaced = match runs_anew {
            Some(_) => self.running_again_since.is_some_and(|since| now - since >= STEADY_OWNER),
            None => observation.is_container && waited >= UNKNOWN_OWNER_WAIT,
        };
        if is_replaced { NamespaceState::Replaced } else { NamespaceState::Orphaned }
    }

    fn record_attached(&mut self, observation: &Observation<'_>) {
        self.had_interface = true;
        self.orphaned_since = None;
        self.running_again_since = None;
        if let OwnerLife::Running { started_at } = observation.life {
            self.has_owner_ended = false;
            if let Some(started_at) = started_at {
                self.owner_started_at = Some(started_at.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN: OwnerLife<'_> = OwnerLife::Unknown;
    const ENDED: OwnerLife<'_> = OwnerLife::Ended;

    fn running(started_at: &str) -> OwnerLife<'_> {
        OwnerLife::Running { started_at: Some(started_at).filter(|started_at| !started_at.is_empty()) }
    }

    /// Returns the state of the namespace after each observation. An observation has its time in
    /// seconds, whether there are interfaces, and the owner's state.
    fn namespaces(observations: &[(u64, bool, OwnerLife<'_>)]) -> Vec<NamespaceState> {
        let (mut watch, begin) = (OrphanWatch::default(), Instant::now());
        let observe = |&(at, has_interfaces, life): &(u64, bool, OwnerLife<'_>)| {
            watch.observe(&Observation { has_interfaces, is_container: true, life }, begin + Duration::from_secs(at))
        };
        observations.iter().map(observe).collect()
    }

    #[test]
    fn a_namespace_that_never_had_an_interface_is_not_orphaned() {
        assert_eq!(namespaces(&[(0, false, UNKNOWN), (90, false, UNKNOWN)]), [NamespaceState::Attached; 2]);
    }

    #[test]
    fn an_owner_that_runs_again_for_a_second_is_followed() {
        use NamespaceState::{Attached, Orphaned, Replaced};
        let observations = [
            (0, true, running("1")),
            (1, true, ENDED),
            (1, false, ENDED),
            (90, false, ENDED),
            (91, false, running("1")),
            (92, false, running("2")),
        ];
        assert_eq!(namespaces(&observations), [Attached, Attached, Orphaned, Orphaned, Orphaned, Replaced]);
    }

    #[test]
    fn an_owner_that_crashes_again_at_once_is_not_followed() {
        use NamespaceState::{Attached, Orphaned, Replaced};
        let observations = [
            (0, true, running("1")),
            (1, false, ENDED),
            (2, false, running("2")),
            (3, false, ENDED),
            (4, false, running("3")),
            (5, false, running("3")),
        ];
        assert_eq!(namespaces(&observations), [Attached, Orphaned, Orphaned, Orphaned, Orphaned, Replaced]);
    }

    #[test]
    fn an_unobserved_restart_shows_in_the_start_time() {
        use NamespaceState::{Attached, Orphaned, Replaced};
        let observations =
            [(0, true, running("1")), (1, false, UNKNOWN), (9, false, running("2")), (10, false, running("2"))];
        assert_eq!(namespaces(&observations), [Attached, Orphaned, Orphaned, Replaced]);
    }

    #[test]
    fn an_owner_that_left_its_last_network_still_owns_the_namespace() {
        use NamespaceState::{Attached, Orphaned};
        let observations =
            [(0, true, running("1")), (1, false, running("1")), (90, false, running("1")), (91, true, running("1"))];
        assert_eq!(namespaces(&observations), [Attached, Orphaned, Orphaned, Attached]);
    }

    #[test]
    fn without_knowledge_of_the_owner_the_namespace_counts_as_replaced_after_a_minute() {
        use NamespaceState::{Attached, Orphaned, Replaced};
        assert_eq!(
            namespaces(&[(0, true, UNKNOWN), (1, false, UNKNOWN), (60, false, UNKNOWN), (61, false, UNKNOWN)]),
            [Attached, Orphaned, Orphaned, Replaced]
        );
        let observations =
            [(0, true, running("")), (1, false, running("")), (60, false, running("")), (61, false, running(""))];
        assert_eq!(namespaces(&observations), [Attached, Orphaned, Orphaned, Replaced]);
    }

    #[test]
    fn a_machine_that_loses_its_network_has_no_owner_to_wait_for() {
        let (mut watch, begin) = (OrphanWatch::default(), Instant::now());
        let mut observe = |has_interfaces, at| {
            let observation = Observation { has_interfaces, is_container: false, life: UNKNOWN };
            watch.observe(&observation, begin + Duration::from_secs(at))
        };
        assert_eq!(
            [observe(true, 0), observe(false, 1), observe(false, 900)],
            [NamespaceState::Attached, NamespaceState::Orphaned, NamespaceState::Orphaned]
        );
    }
}
