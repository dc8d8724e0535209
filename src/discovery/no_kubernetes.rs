//! In place of Kubernetes, in a build without it: nobody can make one of these.

use std::convert::Infallible;

use super::pod::Pod;
use super::view::DockerState;
use crate::config;
use crate::metrics;
use crate::secret::Secret;

/// The way to the API server.
#[derive(Clone, Debug)]
pub struct Api(Infallible);

/// No error ever comes about.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

impl Error {
    /// Whether the API server forbids the request.
    pub fn is_forbidden(&self) -> bool {
        match *self {}
    }
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOf {
    /// The user.
    pub user: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
}

/// A request that loopgate needs to be permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `list pods`
    List,
    /// `watch pods`
    Watch,
    /// `create tokenreviews`
    Review,
}

impl Api {
    /// Never called: the configuration refuses this source.
    ///
    /// # Panics
    /// Always.
    pub fn new(_: &config::Kubernetes) -> Self {
        unreachable!("the configuration refuses Kubernetes in this build")
    }

    /// Where it is.
    pub fn name(&self) -> String {
        match self.0 {}
    }

    /// Whose `token` is.
    ///
    /// # Errors
    /// None.
    pub async fn review(&self, _: &Secret) -> Result<Option<TokenOf>, Error> {
        match self.0 {}
    }

    /// Whether the request is permitted.
    ///
    /// # Errors
    /// None.
    pub async fn probe(&self, _: Rule) -> Result<(), Error> {
        match self.0 {}
    }
}

/// The API server, followed.
pub struct Kubernetes(Api);

impl Kubernetes {
    /// Follows `api`.
    pub fn new(api: Api, _: metrics::Discovery) -> Self {
        Self(api)
    }

    /// How it is.
    pub fn state(&self) -> &DockerState {
        match self.0.0 {}
    }

    /// The pods.
    pub fn pods(&self) -> &[Pod] {
        match self.0.0 {}
    }

    /// Waits until something is known anew.
    pub async fn changed(&mut self) {
        match self.0.0 {}
    }
}
