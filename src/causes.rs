//! An error in words: what happened, and because of what.

use std::error::Error;

/// `error` and its causes on one line, the outermost first.
pub fn said(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading the token")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_cause_is_told() {
        assert_eq!(said(&Outer(std::io::Error::other("the disk is gone"))), "reading the token: the disk is gone");
        assert_eq!(said(&std::io::Error::other("alone")), "alone");
    }
}
