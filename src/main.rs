//! The binary: parse, dispatch, exit status; everything else is the library's.

use std::process::ExitCode;

fn main() -> ExitCode {
    loopgate::cli::main()
}
