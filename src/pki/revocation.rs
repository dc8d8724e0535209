//! The serial numbers of revoked client certificates, in a file of the state directory.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::error::{Error, InvalidFile};
use super::state_dir::{Access, StateDir};

/// The file with the revoked serial numbers, one in each line, in hexadecimal. `#` begins a
/// comment.
pub(super) const REVOKED_FILE: &str = "revoked";

/// The maximum length of a serial number, in bytes (RFC 5280 section 4.1.2.2).
const MAX_SERIAL: usize = 20;

/// The serial numbers of revoked certificates of loopgate's CA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked(BTreeSet<Vec<u8>>);

impl Revoked {
    /// Returns whether `serial` is revoked. Leading zeros make no difference.
    pub fn contains(&self, serial: &[u8]) -> bool {
        self.0.contains(without_zeros(serial))
    }
}

/// Parses a serial number in hexadecimal, with or without colons.
///
/// # Errors
/// `text` is not a serial number.
pub fn parse_serial(text: &str) -> Result<Vec<u8>, Error> {
    let invalid = || Error::Serial { text: text.to_owned() };
    let bytes = hex::decode(text.trim().replace(':', "")).map_err(|_| invalid())?;
    let serial = without_zeros(&bytes);
    if serial.is_empty() || serial.len() > MAX_SERIAL { Err(invalid()) } else { Ok(serial.to_vec()) }
}

/// Reads the list. Without a file the list is empty.
///
/// # Errors
/// The file can't be read or parsed. It is not ignored, so that no revoked certificate is accepted
/// by accident.
pub(super) fn read(dir: &StateDir) -> Result<Revoked, Error> {
    let content = match dir.read(REVOKED_FILE, Access::Public) {
        Ok(content) => content,
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => None,
        Err(error) => return Err(error),
    };
    let Some(content) = content else { return Ok(Revoked::default()) };
    let unusable = |line: usize| Error::unusable(dir.path_of(REVOKED_FILE))(InvalidFile::RevokedLine(line));
    let text = std::str::from_utf8(&content).map_err(|_| unusable(1))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let numbered = lines.map(|(number, line)| (number + 1, line.split('#').next().unwrap_or_default().trim()));
    let serials = numbered
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| parse_serial(line).map_err(|_| unusable(number)));
    Ok(Revoked(serials.collect::<Result<_, _>>()?))
}

/// Adds `serial` to the list. Returns false if the list has it already.
pub(super) fn add(dir: &StateDir, serial: &[u8], comment: &str) -> Result<bool, Error> {
    let _lock = dir.lock()?;
    if read(dir)?.contains(serial) {
        return Ok(false);
    }
    let mut content = dir.read(REVOKED_FILE, Access::Public)?.map(|content| content.to_vec()).unwrap_or_default();
    if content.last().is_some_and(|last| *last != b'\n') {
        content.push(b'\n');
    }
    content.extend(format!("{} # {comment}\n", hex::encode(without_zeros(serial))).bytes());
    dir.replace(REVOKED_FILE, &content, Access::Public)?;
    Ok(true)
}

fn without_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_parsed_in_every_common_spelling() {
        for text in ["0a1b2c", "0A:1B:2C", " 0a1b2c\n", "000a1b2c"] {
            assert_eq!(parse_serial(text).unwrap(), [0x0a, 0x1b, 0x2c], "{text}");
        }
        for text in ["", "00", "xyz", "0a1", &"11".repeat(21)] {
            assert!(parse_serial(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_list_keeps_what_it_had_and_a_line_that_is_no_serial_number_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::at(home.path());
        assert_eq!(read(&dir).unwrap(), Revoked::default());
        std::fs::write(home.path().join(REVOKED_FILE), "# by hand\r\n0A:01\r\n\r\n0b02 # robot").unwrap();
        assert!(add(&dir, &[0x0c, 3], "other").unwrap());
        assert!(!add(&dir, &[0, 0x0a, 1], "again").unwrap());
        let revoked = read(&dir).unwrap();
        assert!(
            [[0x0a, 1], [0x0b, 2], [0x0c, 3]].iter().all(|serial| revoked.contains(serial)) && !revoked.contains(&[1])
        );
        std::fs::write(home.path().join(REVOKED_FILE), "0a01\nrobot\n").unwrap();
        let error = crate::error_chain::error_chain(&read(&dir).unwrap_err());
        assert!(error.contains("revoked") && error.contains("line 2"), "{error}");
    }
}
