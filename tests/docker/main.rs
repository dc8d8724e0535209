//! Tests with a real Docker Engine. `tests/docker/run` starts one and builds the images. Without
//! them the tests print NOT RUN and pass, or fail if `CI` is `true`.

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
mod rootless;
mod smoke;
mod swarm;
mod upheaval;
