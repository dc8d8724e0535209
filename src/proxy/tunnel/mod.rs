//! Two byte streams joined after a `101`.

mod run;
mod websocket_frames;

pub use run::{TunnelOptions, run};
