//! Stories about the running sidecar: the real one, in this process, between raw clients and a gateway that remembers what it heard.

mod gateway;
mod house;
mod process;
mod raw_h2;
mod wire;

mod doors;
mod drain;
mod faults;
mod h2_abuse;
mod lanes;
mod reload;
mod slow;
mod streaming;
mod strict;
mod websocket;
