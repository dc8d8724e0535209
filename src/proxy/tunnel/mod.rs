//! Tunnels: two byte streams that are joined after an upgrade.
//!
//! | files | do |
//! | --- | --- |
//! | `run` | drives a tunnel, and closes it |
//! | `direction` | copies the bytes of one direction |
//! | `gate` | holds the client's bytes back, if the first message of a WebSocket must be checked |
//! | `first_message`, `connect_response` | find that message, and the gateway's response to it |
//! | `websocket_frames` | finds the ends of frames, where a close frame may be written |
//! | `readable_after_write_error` | reads what the gateway sent before a write to it failed |
//! | `first_message_budget`, `buffers` | limit the memory of all tunnels: until that message is complete, and later |

pub mod buffers;
pub mod connect_response;
mod direction;
pub mod first_message;
pub mod first_message_budget;
mod gate;
mod readable_after_write_error;
mod run;
mod websocket_frames;

pub use run::{TunnelError, TunnelOptions, run};
