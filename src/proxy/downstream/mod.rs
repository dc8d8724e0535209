//! The bytes of a downstream connection, and what is watched in them.

pub mod activity;
pub mod h1_request_guard;
pub mod h2_flood_guard;
pub mod h2_stream_stall;
pub mod io;
pub mod window_budget;
