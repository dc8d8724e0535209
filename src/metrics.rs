//! Counters and gauges, in one struct for each module that has some. Clones of a struct share their values.

pub mod discovery;
pub mod enrolment;
pub mod health;
pub mod listener;
pub mod traffic;

pub use discovery::DiscoveryMetrics;
pub use listener::{AcceptRefusal, ListenerMetrics, RefusedLabels};
pub use traffic::count;
