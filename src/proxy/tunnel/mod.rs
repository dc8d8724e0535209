//! Two byte streams joined after a `101`.

pub mod connect_response;
mod direction;
pub mod first_message;
mod gate;
mod run;
mod websocket_frames;

pub use run::{TunnelOptions, run};
