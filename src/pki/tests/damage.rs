//! Tests that damage files. The error must name the file, and no file may be overwritten.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use time::Duration;

use super::super::managed::Managed;
use super::{Home, create_home, error_chain, load_at_start, names, now, read_files};

fn damaged(kind: &str, content: &[u8], of_another: &[u8]) -> Vec<u8> {
    match kind {
        "empty" => Vec::new(),
        "cut off" => content[..content.len() / 2].to_vec(),
        "zeroed" => vec![0; content.len()],
        "garbled" => content.iter().map(|byte| if *byte == b'M' { b'N' } else { *byte }).collect(),
        "some text" => b"hello\n".to_vec(),
        _ => of_another.to_vec(),
    }
}

#[test]
fn a_damaged_file_is_named_and_left_unchanged() {
    let stranger = create_home();
    load_at_start(&stranger.state, "localhost").unwrap();
    let other = read_files(&stranger.state);

    for name in ["ca.pem", "ca.key", "server.pem", "server.key"] {
        for kind in ["empty", "cut off", "zeroed", "garbled", "some text", "of another sidecar"] {
            let home = create_home();
            load_at_start(&home.state, "localhost").unwrap();
            let path = home.state.join(name);
            fs::write(&path, damaged(kind, &fs::read(&path).unwrap(), &other[name])).unwrap();
            let before = read_files(&home.state);
            let text = error_chain(&load_at_start(&home.state, "localhost new.name").expect_err(kind));
            // If a pair does not match, either file may be wrong. The error names the certificate.
            let certificate = name.replace(".key", ".pem");
            let named = text.contains(name) || kind == "of another sidecar" && text.contains(&certificate);
            assert!(named, "{name} {kind}: {text}");
            assert_eq!(read_files(&home.state), before, "{name} {kind}");
        }
    }
}

#[test]
fn a_missing_file_of_a_pair_is_named_unless_it_can_be_created_again() {
    for (name, fine) in [("ca.key", false), ("server.key", false), ("server.pem", true), ("ca.pem", true)] {
        let home = create_home();
        load_at_start(&home.state, "localhost").unwrap();
        fs::remove_file(home.state.join(name)).unwrap();
        let mut before = read_files(&home.state);
        match load_at_start(&home.state, "localhost") {
            Ok(_) => assert!(fine, "{name}"),
            Err(error) => assert!(!fine && error.to_string().contains(name), "{name}: {error}"),
        }
        let mut after = read_files(&home.state);
        before.remove(name);
        after.remove(name);
        assert_eq!(after, before, "{name}");
    }
}

#[test]
fn a_key_that_every_user_can_read_is_refused_and_left_unchanged() {
    for name in ["ca.key", "server.key"] {
        let home = create_home();
        load_at_start(&home.state, "localhost").unwrap();
        let path = home.state.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_at_start(&home.state, "localhost").unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("chmod 600"), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }
}

#[test]
fn a_directory_that_cannot_be_created_is_named() {
    let home = create_home();
    fs::write(&home.state, b"a file").unwrap();
    let error = load_at_start(&home.state.join("below"), "localhost").unwrap_err();
    assert!(error.to_string().contains("state/below"), "{error}");
    let error = load_at_start(&home.state, "localhost").unwrap_err();
    assert!(error.to_string().contains("state"), "{error}");
}

/// Moves a state directory to a path so long that the path of a temporary file exceeds PATH_MAX.
/// Its files can still be read, but none can be written, even by root, which ignores permissions.
fn make_unwritable(home: &Home) -> PathBuf {
    const LONGEST: usize = 4078;
    let mut path: PathBuf = home.state.parent().unwrap().into();
    loop {
        let left = LONGEST - path.as_os_str().len() - 1;
        if left < 256 {
            path.push("x".repeat(left));
            break;
        }
        path.push("x".repeat(200.min(left - 2)));
        fs::create_dir(&path).unwrap();
    }
    fs::rename(&home.state, &path).unwrap();
    assert!(fs::write(path.join(".new-123456-server.pem"), b"").is_err(), "a temporary file can be created");
    path
}

fn leaf(state: &Path, wanted: &str, days: i64) -> (Vec<u8>, Option<String>) {
    let now = now() + Duration::days(days);
    let loaded = Managed::open(state, now).unwrap().load(&names(wanted), now).unwrap();
    (loaded.identity.certified_key.cert[0].to_vec(), loaded.problem.map(|error| error_chain(&error)))
}

#[test]
fn on_a_full_or_read_only_disk_the_present_certificate_is_served_until_it_expires() {
    let home = create_home();
    load_at_start(&home.state, "localhost").unwrap();
    let state = make_unwritable(&home);

    let (first, problem) = leaf(&state, "localhost", 0);
    assert_eq!(problem, None, "nothing to write");
    for (wanted, days) in [("localhost new.name", 0), ("localhost", 61), ("localhost", 89)] {
        let (same, problem) = leaf(&state, wanted, days);
        assert_eq!(same, first, "{wanted} {days}");
        assert!(problem.unwrap().contains("server.pem"), "{wanted} {days}");
    }
    let late = now() + Duration::days(91);
    let error = Managed::open(&state, late).unwrap().load(&names("localhost"), late).unwrap_err();
    assert!(error.to_string().contains("server.pem"), "{error}");
}

#[test]
fn on_a_full_or_read_only_disk_the_missing_file_is_named() {
    for name in ["server.pem", "ca.pem"] {
        let home = create_home();
        load_at_start(&home.state, "localhost").unwrap();
        fs::remove_file(home.state.join(name)).unwrap();
        let error = load_at_start(&make_unwritable(&home), "localhost").unwrap_err().to_string();
        assert!(error.starts_with("can't write") && error.ends_with(name), "{error}");
    }
}
