//! Two byte streams joined after a `101`.
//!
//! `run` drives a tunnel, with a `direction` each way. Where the first message of a WebSocket must be
//! checked, `gate` holds the client's bytes back: `first_message` finds its end, and `connect_response`
//! the gateway's response to it. `websocket_frames` finds where a close frame may be written.

pub mod buffers;
pub mod connect_response;
mod direction;
pub mod first_message;
mod gate;
mod run;
mod websocket_frames;

pub use run::{TunnelError, TunnelOptions, run};
