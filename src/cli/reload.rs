//! `loopgate reload`.

use super::error::Error;
use super::flags::Flags;
use super::healthcheck::AdminOption;
use super::output;
use crate::admin::client;
use crate::admin::reload::Outcome;
use crate::config::validate;

/// Makes the running sidecar read its configuration and certificate files again
///
/// It does what SIGHUP does, through the admin listener, and prints what changed, what needs a
/// restart, or why the configuration was rejected. The sidecar also notices by itself when its
/// configuration file changes. Exit status: 0 if the configuration is in use, 1 if it was rejected.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags<AdminOption>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks the sidecar to reload, and prints the outcome.
pub fn run(args: Args) -> Result<(), Error> {
    // Only the admin address is validated here: the sidecar reports other invalid options.
    let admin = validate::admin_address(&args.flags.merge())?.ok_or(Error::ReloadWithoutAdmin)?;
    let outcome = client::request_reload(admin)?;
    if args.json {
        output::print(format!("{:#}\n", serde_json::json!(outcome)))?;
    } else if outcome.error.is_none() {
        output::print(outcome_text(&outcome))?;
    }
    match outcome.error {
        Some(error) => Err(Error::ReloadRejected(error)),
        None => Ok(()),
    }
}

/// Returns the text that says which options were changed, and which of them need a restart.
fn outcome_text(outcome: &Outcome) -> String {
    let mut text = if outcome.applied.is_empty() {
        "reloaded; no option changed\n".to_owned()
    } else {
        format!("reloaded; changed: {}\n", outcome.applied.join(", "))
    };
    if !outcome.needs_restart.is_empty() {
        text.push_str(&format!("these options changed but need a restart: {}\n", outcome.needs_restart.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_names_what_changed_and_what_needs_a_restart() {
        assert_eq!(outcome_text(&Outcome::default()), "reloaded; no option changed\n");
        let outcome = Outcome {
            applied: vec!["external".into(), "log".into()],
            needs_restart: vec!["admin".into()],
            error: None,
        };
        assert_eq!(
            outcome_text(&outcome),
            "reloaded; changed: external, log\nthese options changed but need a restart: admin\n"
        );
    }
}
