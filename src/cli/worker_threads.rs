//! Checks `TOKIO_WORKER_THREADS` before anything starts, since tokio panics at an invalid value.

use std::ffi::OsStr;

use super::error::Error;
use crate::config;
use crate::config::layer::Problem;
use crate::config::parse;

const VARIABLE: &str = "TOKIO_WORKER_THREADS";

/// Returns whether tokio will take the variable.
pub fn check() -> Result<(), Error> {
    match std::env::var_os(VARIABLE).as_deref().map(problem) {
        None | Some(None) => Ok(()),
        Some(Some(what)) => Err(config::Error(vec![Problem { place: VARIABLE.into(), what }]).into()),
    }
}

fn problem(value: &OsStr) -> Option<String> {
    // Any number but 0 would do; more threads than this are a slip of the pen.
    let text = value.to_string_lossy();
    parse::number::<usize>(1..=1024)(&text).err().map(|what| format!("{text:?} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tokio_takes_passes() {
        assert_eq!(problem("2".as_ref()), None);
        for text in ["", "0", "two", "-1"] {
            assert_eq!(problem(text.as_ref()), Some(format!("{text:?} is not a number from 1 to 1024")));
        }
    }
}
