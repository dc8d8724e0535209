//! Tests of loopgate with real programs: OpenClaw's gateway, its Control UI in Chromium, curl,
//! Caddy and Traefik. The hosts are network namespaces. `tests/run real` installs what the tests
//! need; a test that lacks a program prints NOT RUN, and fails if `CI` is `true`.

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
