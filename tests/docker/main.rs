//! Stories on a real Docker Engine. `tests/docker/run` brings one, and the images; without either they are skipped, aloud.

mod compose;
mod container;
mod discovery;
mod engine;
mod filter;
mod image;
mod openclaw;
mod project;
mod smoke;
