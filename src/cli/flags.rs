//! The flags of `run` and of the commands that read the same configuration, made from the table of
//! options.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches, ValueHint, value_parser};

use crate::config::key::KEYS;
use crate::config::layer::{Layer, Origin, Problem, RawValue};
use crate::config::option::{Form, Key};
use crate::config::{self, Config, environment, file};

/// The heading, in the help, of options that are not in a table of the file.
const GENERAL: &str = "General";

const CONFIG_FLAG: &str = "--config";
const CONFIG_VARIABLE: &str = "LOOPGATE_CONFIG";

/// Selects the options that a command takes as flags. Variables and the file may set all options.
pub trait Selection: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Returns whether the command takes this option.
    fn takes(key: &Key) -> bool;
}

/// Every option.
#[derive(Clone, Debug)]
pub struct All;

impl Selection for All {
    fn takes(_: &Key) -> bool {
        true
    }
}

/// The options on the command line, and the file that `--config` or its variable names. `S` selects
/// the options that the command has as flags.
#[derive(Clone, Debug)]
pub struct Flags<S: Selection = All> {
    layer: Layer,
    file: Option<PathBuf>,
    /// The flag or the variable that names the file, for error messages.
    file_named_by: &'static str,
    selection: PhantomData<S>,
}

impl<S: Selection> Flags<S> {
    /// Merges flags, environment, file and defaults, without validating them.
    pub fn merge(self) -> Layer {
        let (environment, file) = self.environment_and_file_layers();
        config::merge(self.layer, environment, file)
    }

    /// Returns the file that `--config` or `LOOPGATE_CONFIG` names.
    pub fn file(&self) -> Option<&std::path::Path> {
        self.file.as_deref()
    }

    /// Loads the configuration from flags, environment and file.
    pub fn load(self) -> Result<Config, config::Error> {
        let (environment, file) = self.environment_and_file_layers();
        config::load(self.layer, environment, file)
    }

    /// Merges the options for a command that asks a running sidecar.
    ///
    /// A file that a flag names must be valid. A file that the variable names may be invalid: it
    /// may have been edited since the sidecar read it, and the command should still work.
    ///
    /// # Errors
    /// If a file that a flag names is invalid.
    pub fn merge_for_client_command(self) -> Result<Layer, config::Error> {
        if self.file.is_some() && self.file_named_by == CONFIG_FLAG {
            self.clone().load()?;
        }
        Ok(self.merge())
    }

    /// Loads the configuration again for a reload. Rejects a file that is a pipe or standard input,
    /// because it can be read only once.
    pub fn load_again(self) -> Result<Config, config::Error> {
        match &self.file {
            Some(file) if std::fs::metadata(file).is_ok_and(|about| !about.is_file()) => {
                let message = format!("{}: is not a regular file, so it can't be read again", file.display());
                Err(config::Error(vec![Problem { place: self.file_named_by.into(), message }]))
            }
            _ => self.load(),
        }
    }

    fn environment_and_file_layers(&self) -> (Layer, Layer) {
        let environment = read_environment();
        let file = self.file.as_deref().map(|file| file::read(file, self.file_named_by)).unwrap_or_default();
        (environment, file)
    }
}

/// Rejects unknown `LOOPGATE_*` variables, which clap would ignore. For commands that read their
/// variables by clap.
pub fn refuse_unknown_variables() -> Result<(), config::Error> {
    let problems = read_environment().problems;
    if problems.is_empty() { Ok(()) } else { Err(config::Error(problems)) }
}

/// The variables of flags that are not in the table of options, which clap reads. One environment
/// may set the variables of several commands, so no command may reject those of another.
static VARIABLES_OF_COMMANDS: OnceLock<BTreeSet<String>> = OnceLock::new();

/// Stores the variables of `command` and its subcommands. Must be called once, before any command
/// runs.
pub fn set_variables_of_commands(command: &clap::Command) {
    fn collect_variables(command: &clap::Command, into: &mut BTreeSet<String>) {
        into.extend(command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())));
        command.get_subcommands().for_each(|command| collect_variables(command, into));
    }
    let mut variables = BTreeSet::new();
    collect_variables(command, &mut variables);
    let _ = VARIABLES_OF_COMMANDS.set(variables);
}

fn read_environment() -> Layer {
    static NONE: BTreeSet<String> = BTreeSet::new();
    environment::read(std::env::vars_os(), VARIABLES_OF_COMMANDS.get().unwrap_or(&NONE))
}

/// Returns the command-line argument for the option `key`.
fn argument_of_key(key: &'static Key) -> Arg {
    let help = match key.default {
        Some(default) if key.form != Form::Switch => format!("{} [default: {default}]", key.help),
        _ => key.help.into(),
    };
    let unavailable = key.flag == "otel-endpoint" && !cfg!(feature = "otel");
    let arg = Arg::new(key.flag).long(key.flag).help(help).help_heading(table_heading(key.table())).hide(unavailable);
    match key.form {
        Form::Switch => arg
            .value_name("BOOL")
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        // A negative number is accepted here, and then rejected as a value: clap alone would call
        // it an unknown flag.
        Form::Number => arg.value_name("NUMBER").action(ArgAction::Set).allow_negative_numbers(true),
        Form::Duration => arg.value_name("DURATION").action(ArgAction::Set).allow_negative_numbers(true),
        Form::Choice(words) => {
            arg.value_name("WORD").action(ArgAction::Set).value_parser(PossibleValuesParser::new(words))
        }
        Form::Text(name) => arg.value_name(name).action(ArgAction::Set).value_hint(match name {
            "FILE" => ValueHint::FilePath,
            "DIR" => ValueHint::DirPath,
            _ => ValueHint::Unknown,
        }),
        Form::List(name) => arg.value_name(name).action(ArgAction::Append),
    }
}

/// Returns the heading in `--help` for the options of `table`.
fn table_heading(table: &'static str) -> &'static str {
    match table {
        "gateway" => "Gateway",
        "listen" => "Listening",
        "tls" => "Certificates",
        "docker" => "Docker",
        "kubernetes" => "Kubernetes",
        "agents" => "Agents",
        "external" => "External clients",
        "limits" => "Limits",
        "log" => "Logging",
        _ => GENERAL,
    }
}

impl<S: Selection> clap::Args for Flags<S> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new("config")
            .long("config")
            .env(CONFIG_VARIABLE)
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help_heading(GENERAL)
            .value_parser(value_parser!(OsString))
            .help("TOML file; flags and environment variables override it");
        command.arg(config).args(KEYS.iter().filter(|key| S::takes(key)).map(argument_of_key))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<S: Selection> FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut layer = Layer::default();
        for key in KEYS.iter().filter(|key| S::takes(key)) {
            if let Some(texts) = matches.get_many::<String>(key.flag) {
                layer.set(key, texts.map(|text| RawValue { text: text.clone(), origin: Origin::Flag }));
            }
        }
        let from_variable = matches.value_source("config") == Some(clap::parser::ValueSource::EnvVariable);
        Ok(Self {
            layer,
            // An empty variable counts as unset, as for all options.
            file: matches
                .get_one::<OsString>("config")
                .filter(|file| !(from_variable && file.is_empty()))
                .map(PathBuf::from),
            file_named_by: if from_variable { CONFIG_VARIABLE } else { CONFIG_FLAG },
            selection: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
