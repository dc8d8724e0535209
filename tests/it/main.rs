//! Stories about the running sidecar: the real one, in this process, between raw clients and a gateway that remembers what it heard.

mod gateway;
mod house;
mod wire;

mod faults;
mod lanes;
mod streaming;
mod strict;
mod websocket;
