//! `loopgate agent` and `loopgate exec` with a fake sidecar: which sidecar is trusted, what is
//! forwarded, and how `exec` treats its command.

mod carry;
mod exec;
mod sidecar;
