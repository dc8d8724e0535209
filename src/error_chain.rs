//! Formats an error together with its causes.

use std::error::Error;

/// Returns `error` and its causes in one string, the outermost first, separated by `: `.
pub fn error_chain(error: &dyn Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(cause) => format!("{error}: {}", error_chain(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading the token")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_cause_is_printed() {
        let error = Outer(std::io::Error::other("no such disk"));
        assert_eq!(error_chain(&error), "reading the token: no such disk");
        assert_eq!(error_chain(&std::io::Error::other("alone")), "alone");
    }
}
