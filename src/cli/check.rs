//! `loopgate check`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use super::error::Error;
use super::flags::Flags;
use super::output;
use super::table::{Tone, paint, stdout_gets_colours};
use crate::check::fix::{self, Setting};
use crate::check::{self, Finding, Report, Severity};

/// Checks the gateway, the containers and the configuration, and prints a remedy for each fault
///
/// Run it where the sidecar runs, with the same options. It changes nothing without --fix. Exit
/// status: 0 without errors, 1 with some.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// The gateway's own configuration file, openclaw.json
    #[arg(long, value_name = "FILE")]
    openclaw_config: Option<PathBuf>,
    /// Set what is safe to set in the gateway's configuration, by its own command `openclaw config
    /// set`, and look again
    #[arg(long, conflicts_with = "json")]
    fix: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks once; with `--fix`, once more if it changed the gateway's configuration.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    let config = args.flags.load()?;
    let look = || check::run(&config, args.openclaw_config.as_deref()).map_err(Error::io("starting the runtime"));
    let mut report = look()?;
    if args.fix
        && apply_fixes(&report, check::openclaw_config_path(&config, args.openclaw_config.as_deref()).as_deref())?
    {
        report = look()?;
    }
    let shown = if args.json {
        format!("{:#}\n", serde_json::json!(report))
    } else {
        report_text(&report, stdout_gets_colours())
    };
    output::print(shown)?;
    Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs the commands that `--fix` may run without a decision of the operator, and prints each
/// before. Returns `true` if all of them succeeded. Prints why and returns `false` if there are
/// none, if `file` belongs to another user, or if there is no command `openclaw`.
///
/// # Errors
/// If a command fails; those before it have been run.
fn apply_fixes(report: &Report, file: Option<&Path>) -> Result<bool, Error> {
    let settings: Vec<Setting> = fix::settings_to_fix(report).into_iter().filter(Setting::is_safe_to_fix).collect();
    if settings.is_empty() {
        output::print("there is nothing that --fix can set in the gateway's configuration\n")?;
        return Ok(false);
    }
    // If another user wrote the file, it would belong to that user, and the gateway could no longer
    // write it.
    let owner = file.and_then(|file| std::fs::metadata(file).ok()).map(|metadata| metadata.uid());
    if let Some(owner) = owner.filter(|owner| *owner != nix::unistd::geteuid().as_raw()) {
        output::print(format!(
            "nothing set: the gateway's configuration belongs to the user {owner}; run --fix, or the commands below, \
             as that user\n"
        ))?;
        return Ok(false);
    }
    for setting in &settings {
        output::print(format!("$ {setting}\n"))?;
        let mut command = Command::new("openclaw");
        command.args(setting.arguments()).stdin(Stdio::null());
        if let Some(file) = file {
            command.env("OPENCLAW_CONFIG_PATH", file);
        }
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(Error::Fix { command: setting.to_string(), status }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                output::print(
                    "nothing set: there is no command openclaw here; run the commands below where the gateway is\n",
                )?;
                return Ok(false);
            }
            Err(error) => return Err(Error::io("running openclaw")(error)),
        }
    }
    output::print("set; restart the gateway if it does not restart itself\n\n")?;
    Ok(true)
}

/// The width of the first column of the text, in characters.
const LABEL: usize = 9;

/// Returns the report as text: what passed, the findings with the worst last, commands that fix
/// them, and the totals.
fn report_text(report: &Report, colours: bool) -> String {
    let mut text = String::new();
    for passed in &report.passed {
        push_line(
            &mut text,
            "ok",
            Tone::Good,
            &paint(&format!("{}: {}", passed.about, passed.seen), Tone::Plain, colours),
            colours,
        );
    }
    let mut findings: Vec<&Finding> = report.findings.iter().collect();
    // The worst finding is last, because a terminal shows the end of the output.
    findings.reverse();
    for finding in findings {
        let tone = match finding.severity {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Fair,
            Severity::Note => Tone::Quiet,
        };
        push_line(&mut text, finding.severity.label(), tone, &paint(finding.id, Tone::Strong, colours), colours);
        for observation in &finding.seen {
            push_line(&mut text, "", Tone::Plain, &paint(observation, Tone::Plain, colours), colours);
        }
        push_line(
            &mut text,
            "",
            Tone::Plain,
            &format!("-> {}", paint(&finding.remedy.to_string(), Tone::Plain, colours)),
            colours,
        );
    }
    let settings = fix::settings_to_fix(report);
    if !settings.is_empty() {
        text.push_str(
            "\nThe same as commands, for where the gateway's own command runs; stop the gateway first, and start it \
             afterwards:\n\n",
        );
        text.extend(
            settings.iter().map(|setting| format!("  {}\n", paint(&setting.to_string(), Tone::Plain, colours))),
        );
        text.push('\n');
    }
    let count = |severity: Severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let plural =
        |number: usize, what: &str| if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") };
    let tone = if errors > 0 { Tone::Bad } else { Tone::Good };
    let verdict = format!("{}, {}", plural(errors, "error"), plural(warnings, "warning"));
    text.push_str(&format!("{}\n", paint(&verdict, tone, colours)));
    text
}

/// Adds a line to `text`: `label` in the colour of `tone`, padded to [`LABEL`], and `rest`.
fn push_line(text: &mut String, label: &str, tone: Tone, rest: &str, colours: bool) {
    let space = " ".repeat(LABEL.saturating_sub(label.len()));
    text.push_str(&format!("{}{space}{rest}\n", paint(label, tone, colours)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Remedy, catalogue};

    #[test]
    fn errors_come_last_with_what_to_do() {
        let mut report = Report::default();
        report.add_passed("gateway", "2026.9.6 answers at 127.0.0.1:18789");
        let remedy = Remedy::OpenClaw { key: "gateway.bind", value: "loopback".into() };
        report.add_finding(&catalogue::GATEWAY_EXPOSED, "172.18.0.2:18789 answers in plain text", remedy);
        report.add_finding(
            &catalogue::DOCKER_WIDE,
            "GET /info is answered 200\x1b[2J",
            Remedy::in_words("put a filter"),
        );
        report.sort_by_severity();
        assert_eq!(
            report_text(&report, false),
            "ok       gateway: 2026.9.6 answers at 127.0.0.1:18789\nwarning  docker-too-wide\n         GET /info is \
             answered 200\\u{1b}[2J\n         -> put a filter\nerror    gateway-exposed\n         172.18.0.2:18789 \
             answers in plain text\n         -> in openclaw.json set gateway.bind: \"loopback\"\n\nThe same as \
             commands, for where the gateway's own command runs; stop the gateway first, and start it afterwards:\n\n  \
             openclaw config set gateway.bind loopback\n\n1 error, 1 warning\n"
        );
    }
}
