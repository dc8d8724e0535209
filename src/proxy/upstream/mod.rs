//! Requests to the gateway: the limits on them, and the connections that carry them. Each worker
//! has a pool of connections. A connection is driven by the task of the client that uses it.

pub mod budget;
pub mod connection;
mod dial;
pub mod gateway_request;
pub mod h1;
pub mod pool;
pub mod request_body;
pub mod send;
mod stalls;
mod weak_table;
