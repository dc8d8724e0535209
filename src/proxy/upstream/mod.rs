//! Connections to the gateway: a pool for each worker and source address, driven on the task of the
//! client that uses them.

pub mod budget;
pub mod connection;
mod dial;
pub mod gateway_request;
pub mod pool;
pub mod readable_after_write_error;
pub mod request_body;
mod response_head;
pub mod send;
mod stalls;
mod weak_table;
