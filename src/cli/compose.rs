//! `loopgate compose`: adds loopgate to an existing compose project.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use super::error::Error;
use super::output;
use crate::compose::{self, Options, Remark, SignIn, render};
use crate::config;
use crate::config::layer::Problem;
use crate::error_chain::error_chain;
use crate::openclaw::files;

/// Writes the override that puts loopgate in front of the gateway of a compose project
///
/// docker compose config --format json | loopgate compose >compose.loopgate.yaml
///
/// Standard error lists, by key, what you must change yourself; the exit status is then 1. No value
/// of the project's variables is written.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `docker compose config --format json` prints [default: standard input]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The service that runs the gateway, if the project does not show which one does
    #[arg(long, value_name = "SERVICE")]
    gateway_service: Option<String>,
    /// A further service that shares the gateway's network, as its CLI does
    #[arg(long, value_name = "SERVICE")]
    cli_service: Vec<String>,
    /// A service that is an agent in a container of its own; adds a filtered Docker socket
    #[arg(long, value_name = "SERVICE")]
    agent: Vec<String>,
    /// Add a filtered Docker socket, for agents that are labelled elsewhere
    #[arg(long)]
    full: bool,
    /// Join the gateway's own network namespace instead of a third container's; needs no !reset, so
    /// any Compose can read it
    #[arg(long)]
    in_gateway: bool,
    /// A further name or address that clients dial
    #[arg(long, value_name = "NAME")]
    tls_name: Vec<String>,
    /// The gateway's user in numbers, where its image has another one than 1000:1000
    #[arg(long, value_name = "UID:GID", value_parser = parse_user)]
    gateway_user: Option<String>,
    /// The gateway's openclaw.json, of which only gateway.auth.mode and userHeader are used
    /// [default: the one in the gateway's mounted state, if it is on this machine]
    #[arg(long, value_name = "FILE")]
    openclaw_config: Option<PathBuf>,
    /// loopgate's image [default: $LOOPGATE_IMAGE of the compose project, or the released one]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Print what would change, and write no override
    #[arg(long)]
    check: bool,
}

fn parse_user(text: &str) -> Result<String, String> {
    let is_number = |part: &str| part.parse::<u32>().is_ok();
    let is_valid =
        text.split_once(':').map_or_else(|| is_number(text), |(user, group)| is_number(user) && is_number(group));
    if is_valid { Ok(text.into()) } else { Err("is not UID:GID, in numbers".into()) }
}

/// Reads the project, and prints the override, or with `--check` the changes that it makes.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    let (place, project_text) = match &args.file {
        Some(path) => (
            path.display().to_string(),
            std::fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?,
        ),
        None => ("standard input".into(), read_standard_input()?),
    };
    let problems_error = |remarks: Vec<Remark>| {
        config::Error(
            remarks.into_iter().map(|remark| Problem { place: remark.key, message: remark.message }).collect(),
        )
    };
    let project =
        compose::parse(&project_text).map_err(|message| problems_error(vec![Remark { key: place, message }]))?;
    let mut options = Options {
        gateway_service: args.gateway_service,
        cli_services: args.cli_service,
        agents: args.agent,
        full: args.full,
        in_gateway: args.in_gateway,
        tls_names: args.tls_name,
        gateway_user: args.gateway_user,
        image: args.image,
        sign_in: None,
    };
    options.sign_in = match &args.openclaw_config {
        Some(path) => {
            let config = files::read_config(path).map_err(|error| {
                problems_error(vec![Remark { key: "--openclaw-config".into(), message: error_chain(&error) }])
            })?;
            Some(SignIn::from_config(&config))
        }
        None => {
            let config = compose::openclaw_config(&project, &options).and_then(|path| files::read_config(&path).ok());
            config.as_ref().map(SignIn::from_config)
        }
    };
    let plan = match compose::plan(&project, &options) {
        Ok(plan) => plan,
        Err(problems) => {
            for problem in &problems {
                output::print_to_stderr(&render::remark_line(problem));
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    if args.check {
        output::print(
            render::change_lines(&plan)
                .into_iter()
                .chain(render::command_lines(&plan))
                .chain([render::public_url_command(&plan)])
                .map(|line| line + "\n")
                .collect::<String>(),
        )?;
    } else {
        output::print(render::override_file(&plan))?;
    }
    for remark in plan.notes.iter().chain(&plan.manual_changes) {
        output::print_to_stderr(&render::remark_line(remark));
    }
    Ok(if plan.manual_changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_standard_input() -> Result<String, Error> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Error::io("reading standard input"))?;
    Ok(text)
}
