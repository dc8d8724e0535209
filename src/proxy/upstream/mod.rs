//! Requests to the gateway: the limits on them, and the connections that carry them. Each worker has a pool of
//! connections. A connection is driven by the task of the client that uses it.

pub mod budget;
pub mod connection;
mod dial;
mod drive_waker;
pub mod gateway_request;
pub mod pool;
pub mod readable_after_write_error;
pub mod request_body;
mod response_head;
pub mod send;
mod stalls;
mod weak_table;
