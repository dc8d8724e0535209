//! The sidecar's configuration, as types that hold only valid values.
//!
//! Other modules read [`Config`]. `layer` merges the sources (flags, environment, file, defaults),
//! and `validate::to_config` turns the result into a `Config`. [`key::KEYS`] is the one table of
//! options.

pub mod environment;
pub mod example;
pub mod file;
pub mod key;
pub mod layer;
pub mod live;
pub mod option;
pub mod parse;
pub mod schema;
mod settings;
pub mod show;
pub mod validate;

pub use settings::{
    AgentService, AgentSourceKind, Agents, BindDevices, CertificateFiles, Config, Docker, Engine, External, Gateway,
    Http, Kubernetes, Limits, Listen, ListenAddresses, ListenOn, Log, LogFormat, OwnAddresses, PathRule, PathTimeout,
    PortForward, Sandbox, Tls, TraceparentUse,
};
pub use validate::Error;

use layer::Layer;

/// The gateway's default port.
pub const GATEWAY_PORT: u16 = 18789;
/// The sidecar's default port. It differs from [`GATEWAY_PORT`] because `openclaw gateway run
/// --force` ends whatever listens on its own port number, on any address.
pub const SIDECAR_PORT: u16 = 18443;

impl Default for Config {
    /// The configuration of `loopgate run` without a flag, a variable or a file: the defaults of
    /// [`key::KEYS`].
    fn default() -> Self {
        validate::to_config(&Layer::defaults()).expect("the defaults are right")
    }
}

/// Merges all sources. Flags override the environment, which overrides the file, which overrides
/// the defaults.
pub fn merge(flags: Layer, environment: Layer, file: Layer) -> Layer {
    flags.merged_over(environment).merged_over(file).merged_over(Layer::defaults())
}

/// Merges the sources and validates the result.
///
/// # Errors
/// If a source or the merged configuration has problems. The error lists all of them.
pub fn load(flags: Layer, environment: Layer, file: Layer) -> Result<Config, Error> {
    validate::to_config(&merge(flags, environment, file))
}
