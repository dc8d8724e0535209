//! Listening sockets that follow the addresses of this network namespace, and the limits on
//! connections.

mod accept_loop;
mod accepted;
mod kind;
mod limits;
mod manager;
pub mod plan;
pub mod proxy_protocol;
mod reachable;
mod socket;
#[cfg(test)]
mod tests;

pub use accepted::Accepted;
pub use kind::{ListenerAddress, ListenerKind};
pub use limits::{ConnectionLimits, ConnectionPermit, MAX_WAITING};
pub use manager::{Error, start};
pub use reachable::reachable_addresses;
