//! loopgate on real parts: OpenClaw's own gateway, its Control UI in Chromium, curl, and traffic by
//! the gigabyte, on hosts made of network namespaces. `tests/run real` installs what they need; a
//! missing part is reported as NOT RUN, and is a failure if `CI` is `true`.

mod backend;
mod browser;
mod capped;
mod check;
mod client_certificate;
mod flood;
mod forward;
mod front;
mod gateway;
mod openclaw;
mod page;
mod shared_identity;
mod sidecar;
mod sign_in;
mod traffic;
mod unpair;
