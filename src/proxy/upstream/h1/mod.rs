//! An HTTP/1.1 client for one connection to the gateway.
//!
//! The task of the client's request polls the connection with its own waker: there is no other task, no channel and no
//! shared state. docs/architecture.md says why hyper's client is not used. `fuzzing/responses.rs`
//! compares the two.
//!
//! [`connection::H1Connection`] joins the two directions:
//!
//! | file | does |
//! | --- | --- |
//! | `encode` | writes the head of a request, and frames its body |
//! | `outgoing` | writes a request to the stream |
//! | `response_head` | parses the head of a response, and decides how long its body is |
//! | `decode` | decodes the body of a response |
//! | `read` | reads from the stream without a buffer that outlives the read |
//!
//! Where RFC 9112 lets a recipient choose, the client refuses a response or does not use its connection again: what two
//! recipients understand differently could smuggle a response to another client.

pub mod connection;
mod decode;
pub mod encode;
pub mod error;
mod outgoing;
mod read;
pub mod response_head;
