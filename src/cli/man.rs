//! `loopgate man`.

use std::path::PathBuf;

use super::error::Error;
use super::output;

/// Prints the manual page, or writes the pages of all commands
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for one page for each command
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints or writes the pages of `command`.
pub fn run(args: &Args, command: clap::Command) -> Result<(), Error> {
    match &args.out {
        Some(dir) => {
            let pages = || std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
            pages().map_err(Error::io(format!("writing to {}", dir.display())))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).map_err(Error::io("making the manual page"))?;
            output::print(page)
        }
    }
}
