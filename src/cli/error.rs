//! The error of a command, and its exit status.

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, variable, key or value is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The sidecar failed.
    #[error(transparent)]
    App(#[from] crate::app::Error),
    /// The demonstration failed.
    #[error(transparent)]
    Demo(#[from] crate::demo::Error),
    /// A certificate can't be read or made.
    #[error(transparent)]
    Pki(#[from] crate::pki::Error),
    /// The operator provides the certificate that is served, so loopgate can't export or rotate it.
    #[error("the sidecar serves {} (tls.cert), which loopgate did not issue: give clients its issuer's CA, and renew \
             it by replacing its files", .0.display())]
    OwnPair(std::path::PathBuf),
    /// The sidecar is not ready, or does not answer.
    #[error(transparent)]
    Admin(#[from] crate::admin::client::Error),
    /// The admin listener, which `reload` needs, is off.
    #[error(
        "the admin listener is off (--admin off): send SIGHUP to the sidecar, or change the file that its --config \
         names, which it watches"
    )]
    ReloadWithoutAdmin,
    /// The sidecar rejected the new configuration.
    #[error("reload rejected, old configuration still in use: {0}")]
    ReloadRejected(String),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] crate::agent::Error),
    /// The command of `exec` can't be run.
    #[error(transparent)]
    Spawn(#[from] crate::agent::supervise::SpawnError),
    /// The device identity can't be used.
    #[error(transparent)]
    Device(#[from] crate::openclaw::device::Error),
    /// The device is not paired.
    #[error(transparent)]
    Pair(#[from] crate::openclaw::pair::Error),
    /// The device has to be approved first; the text says how.
    #[error("{0}")]
    NeedsApproval(String),
    /// A command of `check --fix` failed.
    #[error("{command} failed ({status})")]
    Fix {
        /// The command.
        command: String,
        /// The exit status of the command.
        status: std::process::ExitStatus,
    },
    /// The gateway did not answer in time.
    #[error("the gateway at {address} does not answer within {}", humantime::format_duration(*limit))]
    NoGateway {
        /// The gateway's address.
        address: std::net::SocketAddr,
        /// The time for which the command waited.
        limit: std::time::Duration,
        /// The error of the last attempt.
        source: crate::openclaw::ready::Error,
    },
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The operation that failed, such as `starting the runtime`.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl Error {
    /// Returns a function that converts an I/O error, and adds the operation `doing` that failed.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        |source| Self::Io { doing, source }
    }

    /// Returns the exit status of the process.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::App(error) => error.exit_status(),
            Self::Spawn(error) => error.exit_status(),
            _ => 1,
        }
    }
}
