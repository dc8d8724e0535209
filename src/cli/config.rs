//! `loopgate config`: shows the configuration in use, its schema and an example file.

use super::error::Error;
use super::flags::Flags;
use super::output;
use crate::config::{example, schema, show, validate};

/// Shows the configuration, or its schema
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Prints every option's value and where it came from, as TOML
    Show {
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Prints a file with every key, its default and what it is for
    Example,
    /// Prints the JSON Schema of the file
    Schema,
}

/// Prints the configuration in use, the example file or the schema.
pub fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Show { flags } => {
            let layer = flags.merge();
            validate::to_config(&layer)?;
            output::print(show::render_settings(&layer))
        }
        Command::Example => output::print(example::example()),
        Command::Schema => output::print(format!("{:#}\n", schema::schema())),
    }
}
