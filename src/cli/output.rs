//! Writes results to standard output, and messages as `loopgate: ...` to standard error. Unlike
//! `println!`, it does not panic if the reader has closed the pipe.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::error::ErrorKind as UsageKind;

use super::error::Error;

use crate::error_chain::error_chain;

/// Writes a result. A reader that closes the pipe early (`loopgate man | head`) is not an error.
pub fn print(bytes: impl AsRef<[u8]>) -> Result<(), Error> {
    print_unless_closed(bytes).map(drop)
}

/// Writes a result. Returns `false` if the reader has closed the pipe.
pub fn print_unless_closed(bytes: impl AsRef<[u8]>) -> Result<bool, Error> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes.as_ref()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("writing to standard output")(error)),
    }
}

/// Writes an error to standard error: one line with its causes, or a line for each problem of the
/// configuration.
pub fn print_error(error: &Error) {
    if let Error::Config(crate::config::Error(problems)) = error {
        for problem in problems {
            print_to_stderr(&problem.to_string());
        }
        return;
    }
    print_to_stderr(&error_chain(error));
}

/// Handles an error of clap: prints the help or the version if that was asked for, else one line
/// with the error. Returns the exit status.
pub fn report_clap_error(error: &clap::Error) -> ExitCode {
    match error.kind() {
        UsageKind::DisplayHelp | UsageKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        UsageKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
        }
        _ => print_to_stderr(&in_one_line(&error.to_string())),
    }
    ExitCode::from(2)
}

/// Returns clap's error message as one line, without the usage and the reference to `--help`.
/// Clap's tips follow in parentheses.
fn in_one_line(message: &str) -> String {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = message.split("\n\n");
    let mut line = words(paragraphs.next().unwrap_or_default().trim_start_matches("error: "));
    for tip in paragraphs.flat_map(str::lines).filter_map(|line| line.trim().strip_prefix("tip: ")) {
        line.push_str(&format!(" ({})", words(tip)));
    }
    line
}

/// Writes one line to standard error, prefixed with `loopgate: `.
pub fn print_to_stderr(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "loopgate: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_fits_on_a_line() {
        let message = "error: unexpected argument '--gatway' found\n\n  tip: a similar argument exists: '--gateway'\n\n\
                       Usage: loopgate run --gateway <ADDR>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            in_one_line(message),
            "unexpected argument '--gatway' found (a similar argument exists: '--gateway')"
        );
        let message = "error: the following required arguments were not provided:\n  --a <A>\n  --b <B>\n\nUsage: x\n";
        assert_eq!(in_one_line(message), "the following required arguments were not provided: --a <A> --b <B>");
    }
}
