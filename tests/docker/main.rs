//! Stories on a real Docker Engine. `tests/docker/run` brings one, and the images; without either
//! they are skipped, aloud.

mod agents;
mod attested;
mod check;
mod compose;
mod compose_official;
mod container;
mod conversation;
mod discovery;
mod engine;
mod entrypoint;
mod filter;
mod harness;
mod image;
mod labels;
mod machine;
mod matrix;
mod openclaw;
mod project;
mod smoke;
mod swarm;
mod upheaval;
