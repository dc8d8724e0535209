//! The metrics of loopgate: counters, gauges and histograms, in one struct for each area.
//!
//! A clone of a struct shares its counters with the original.

pub mod discovery;
pub mod enrolment;
pub mod health;
pub mod listener;
pub mod traffic;

pub use discovery::DiscoveryMetrics;
pub use listener::{AcceptRefusal, ListenerMetrics, RefusedLabels};
pub use traffic::count_reason;
