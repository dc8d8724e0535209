//! An HTTP/1.1 client for one connection to the gateway.
//!
//! The files, in the order in which a request passes them:
//!
//! | file | does |
//! | --- | --- |
//! | `encode` | writes the head of the request as bytes, and says how its body is framed |
//! | `connection` | [`connection::H1Connection`]: the state of one exchange, from the request to the end of the response. It calls the files below, and can take the next request afterwards |
//! | `outgoing` | sends the head and the body to the stream |
//! | `read` | reads from the stream, without a buffer that outlives the read |
//! | `response_head` | parses the heads of responses, interim ones too, and decides how long the body is |
//! | `decode` | decodes the body and its trailers |
//! | `error` | why an exchange failed |
//!
//! The task of the client's request polls the connection with its own waker: there is no other
//! task, no channel and no shared state. docs/architecture.md says why hyper's client is not used.
//! This client can be deleted when hyper's can be polled on the caller's task without channels, and
//! has a setting that bounds its read-ahead. `fuzzing/responses.rs` compares the two.
//!
//! Where RFC 9112 lets a recipient choose, this client refuses the response, or does not use the
//! connection again. A response that two recipients understand differently could be smuggled to
//! another client.

pub mod connection;
mod decode;
pub mod encode;
pub mod error;
mod outgoing;
mod read;
pub mod response_head;
