//! The bytes of a downstream connection, below hyper: followed in both directions, and changed where
//! hyper falls short.
//!
//! | files | do |
//! | --- | --- |
//! | `io` | the stream that hyper reads and writes, which runs the others |
//! | `activity` | what the connection is doing, for its deadlines |
//! | `h1_request_guard` | finds HTTP/1.1 requests that state their length twice |
//! | `h1_refusal`, `refused_heads` | what hyper refuses by itself: its response's body, its log line and count |
//! | `h2_flood_guard` | limits HTTP/2 frames that ask for nothing |
//! | `h2_output_frames`, `head_tracker` | write interim responses (1xx) between hyper's bytes; the second also counts heads |
//! | `request_streams` | finds on which HTTP/2 stream a request came |
//! | `h2_stream_stall` | resets HTTP/2 streams that the client does not read |
//! | `h2_trailers` | has `h2` refuse pseudo-header fields in trailers |
//! | `window_budget` | shares memory among the flow-control windows of HTTP/2 connections |

pub mod activity;
pub mod h1_refusal;
pub mod h1_request_guard;
mod h2_flood_guard;
mod h2_frame_head;
mod h2_output_frames;
pub mod h2_stream_stall;
mod h2_trailers;
pub mod head_tracker;
mod interim_queue;
pub mod io;
pub mod refused_heads;
mod request_streams;
pub mod transport;
pub mod window_budget;
