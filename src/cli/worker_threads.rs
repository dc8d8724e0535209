//! Checks the variable `TOKIO_WORKER_THREADS` before a runtime starts, because tokio panics if it
//! is invalid.
//!
//! Workaround: delete when tokio returns an error instead.

use std::ffi::OsStr;

use super::error::Error;
use crate::config;
use crate::config::layer::Problem;
use crate::config::parse;

const VARIABLE: &str = "TOKIO_WORKER_THREADS";

/// Checks the variable.
///
/// # Errors
/// If its value is not a number from 1 to 1024.
pub fn check_variable() -> Result<(), Error> {
    match std::env::var_os(VARIABLE).as_deref().map(why_invalid) {
        None | Some(None) => Ok(()),
        Some(Some(message)) => Err(config::Error(vec![Problem { place: VARIABLE.into(), message }]).into()),
    }
}

fn why_invalid(value: &OsStr) -> Option<String> {
    // tokio accepts any number but 0. More than 1024 threads are surely a mistake.
    let text = value.to_string_lossy();
    parse::number::<usize>(1..=1024)(&text).err().map(|message| format!("{text:?} {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tokio_takes_passes() {
        assert_eq!(why_invalid("2".as_ref()), None);
        for text in ["", "0", "two", "-1"] {
            assert_eq!(why_invalid(text.as_ref()), Some(format!("{text:?} is not a number from 1 to 1024")));
        }
    }
}
