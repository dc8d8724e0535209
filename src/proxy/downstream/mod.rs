//! The bytes of a downstream connection, below hyper: followed in both directions, and changed to
//! work around what hyper and `h2` can't do.
//!
//! | files | do |
//! | --- | --- |
//! | `io` | the stream that hyper reads and writes; it calls the others |
//! | `transport` | the socket below it: over TLS, or plain TCP |
//! | `activity` | what the connection is doing, for its deadlines |
//! | `output_state` | how much of what hyper wrote the socket has taken |
//! | `h1_request_guard` | makes hyper refuse HTTP/1.1 requests with two lengths and HTTP/2's preface; percent-encodes targets |
//! | `h1_refusal`, `refused_heads` | heads that hyper refuses: the response's body; the log line and the count |
//! | `h2_frame_head` | parses the heads of HTTP/2 frames |
//! | `h2_input_frames` | reads the heads of the client's HTTP/2 frames; limits those other than HEADERS and DATA with content |
//! | `head_tracker`, `interim_queue`, `h2_output_frames` | write interim responses (1xx) between hyper's bytes |
//! | `request_streams` | finds the HTTP/2 stream of each request |
//! | `h2_stream_stall` | resets HTTP/2 streams that the client does not read |
//! | `h2_trailers` | has `h2` refuse pseudo-header fields in trailers |
//! | `window_budget` | shares memory among the flow-control windows of HTTP/2 connections |

pub mod activity;
pub mod h1_refusal;
pub mod h1_request_guard;
mod h2_frame_head;
mod h2_input_frames;
mod h2_output_frames;
pub mod h2_stream_stall;
mod h2_trailers;
pub mod head_tracker;
mod interim_queue;
pub mod io;
mod output_state;
pub mod refused_heads;
mod request_streams;
pub mod transport;
pub mod window_budget;
