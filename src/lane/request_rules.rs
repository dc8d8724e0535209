//! The configuration for requests.

use std::net::Ipv4Addr;

use super::policy::LanePolicy;
use crate::config::{Config, PathRule};

/// The part of the configuration that building a `GatewayHead` needs.
#[derive(Clone, Debug)]
pub struct RequestRules {
    pub(super) policy: LanePolicy,
    pub(super) paths: Vec<PathRule>,
    pub(super) upgrades: Vec<String>,
    pub(super) external_source: Ipv4Addr,
}

impl RequestRules {
    /// Copies the rules from `config`.
    pub fn new(config: &Config) -> Self {
        Self {
            policy: LanePolicy::new(config),
            paths: config.external.paths.clone(),
            upgrades: config.http.upgrades.clone(),
            external_source: config.gateway.external_source,
        }
    }

    /// The policy that decides lanes.
    pub fn policy(&self) -> &LanePolicy {
        &self.policy
    }
}
