//! `loopgate pair`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use super::error::Error;
use super::output;
use crate::config::parse;
use crate::openclaw::device::Device;
use crate::openclaw::{approve, files, pair, ready};
use crate::secret::Secret;

/// Pairs an OpenClaw device identity with the gateway, for all operator scopes
///
/// OpenClaw 2026.2.19 pairs a local device silently only for the scopes of its first request.
/// Pairing again changes nothing; the identity file is never changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device identity: identity/device.json in OpenClaw's state directory
    #[arg(long, env = "LOOPGATE_IDENTITY", value_name = "FILE", value_parser = parse::path)]
    identity: PathBuf,
    /// The gateway, or the loopback listener of an agent
    #[arg(
        long,
        env = "LOOPGATE_URL",
        value_name = "URL",
        default_value = "ws://127.0.0.1:18789",
        value_parser = parse_loopback_url
    )]
    url: SocketAddr,
    /// The file that holds the gateway's token [default: the variable OPENCLAW_GATEWAY_TOKEN]
    #[arg(long, env = "LOOPGATE_TOKEN_FILE", value_name = "FILE", value_parser = parse::path)]
    token_file: Option<PathBuf>,
    /// Only create the identity if it does not exist yet, without connecting: for a sidecar that
    /// may only read the gateway's state. Creates nothing where the state is a newer gateway's,
    /// which keeps its identity in a database
    #[arg(long)]
    create_only: bool,
    /// Wait until the gateway answers, for at most this long
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "5m",
        value_parser = parse::duration
    )]
    wait: Option<Duration>,
    /// If the gateway wants an approval, let a second device give it, which exists for that time
    /// only. For the gateway's own device, which 2026.2.19 leaves without the right to approve
    /// itself
    #[arg(long)]
    approve: bool,
}

/// Parses `ws://HOST:PORT`, and resolves the host. It must resolve to a loopback address, because
/// the token must not cross a network without encryption.
fn parse_loopback_url(text: &str) -> Result<SocketAddr, String> {
    let what = "is not a loopback URL such as ws://127.0.0.1:18789";
    let authority = text.strip_prefix("ws://").ok_or(what)?.trim_end_matches('/');
    let mut addresses = authority.to_socket_addrs().map_err(|_| what)?;
    addresses.find(|address| address.ip().to_canonical().is_loopback()).ok_or_else(|| what.into())
}

/// Pairs the device, or with `--create-only` creates its identity.
pub fn run(args: &Args) -> Result<(), Error> {
    if args.create_only {
        if let Some(database) = files::newer_database(&args.identity) {
            return output::print(format!(
                "nothing created: the gateway keeps its identity in {}\n",
                database.display()
            ));
        }
        let device = Device::create(&args.identity)?;
        return output::print(format!("device {} is in {}\n", device.id(), args.identity.display()));
    }
    let device = Device::read(&args.identity)?;
    let file = args.token_file.as_deref();
    let reading = || format!("reading the token file {}", file.unwrap_or_else(|| "".as_ref()).display());
    let token = Secret::read_gateway_token(file).map_err(|source| Error::io(reading())(source))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("starting the runtime"))?;
    let paired = runtime.block_on(async {
        if let Some(limit) = args.wait {
            ready::wait_until_ready(args.url, limit).await.map_err(|source| Error::NoGateway {
                address: args.url,
                limit,
                source,
            })?;
        }
        let paired = if args.approve {
            approve::pair_and_approve(args.url, &device, token.as_ref()).await
        } else {
            pair::pair(args.url, &device, token.as_ref()).await
        };
        paired.map_err(|error| match error {
            pair::Error::NeedsApproval { request } => {
                Error::NeedsApproval(approve::approval_advice(&args.identity, request.as_deref()))
            }
            error => error.into(),
        })
    })?;
    let scopes = if paired.scopes.is_empty() { "the scopes it asked for".into() } else { paired.scopes.join(", ") };
    output::print(format!("device {} is paired: {scopes}\n", paired.device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_urls_are_taken() {
        for (url, expected) in [
            ("ws://127.0.0.1:18789", Some("127.0.0.1:18789")),
            ("ws://[::1]:3000/", Some("[::1]:3000")),
            ("ws://10.0.0.1:18789", None),
            ("wss://127.0.0.1:18789", None),
            ("ws://127.0.0.1", None),
        ] {
            assert_eq!(parse_loopback_url(url).ok().map(|address| address.to_string()).as_deref(), expected, "{url}");
        }
    }
}
