//! The agent side against a sidecar of TLS and nothing else: who is trusted, what is carried, and
//! how `exec` treats its command.

mod carry;
mod exec;
mod sidecar;
