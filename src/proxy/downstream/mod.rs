//! The bytes of a downstream connection, and what is watched in them.

pub mod activity;
mod h1_refusal;
pub mod h1_request_guard;
mod h2_flood_guard;
mod h2_frames;
pub mod h2_stream_stall;
mod h2_trailers;
pub mod interims;
pub mod io;
pub mod refused_heads;
pub mod window_budget;
