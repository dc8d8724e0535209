//! loopgate on real parts: OpenClaw's own gateway, its Control UI in Chromium, curl, and traffic by the gigabyte, on hosts made of
//! network namespaces. `tests/run real` installs what they need; a part that is missing is reported aloud, and is a failure where `CI`
//! is `true`.

mod backend;
mod browser;
mod check;
mod front;
mod gateway;
mod openclaw;
mod page;
mod sidecar;
mod traffic;
