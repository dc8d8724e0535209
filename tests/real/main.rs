//! loopgate on real parts: OpenClaw's own gateway, its Control UI in Chromium, curl, and traffic by the gigabyte, on hosts made of
//! network namespaces. `tests/run real` installs what they need; a part that is missing is reported aloud, and is a failure where `CI`
//! is `true`.

mod backend;
mod browser;
mod check;
mod client;
mod content;
mod front;
mod gateway;
mod network;
mod openclaw;
mod page;
mod parts;
mod process;
mod sidecar;
mod traffic;
mod websocket;
