use super::*;
use proptest::prelude::*;

const CL: &str = "Content-Length: 4\r\n";
const TE: &str = "Transfer-Encoding: chunked\r\n";

fn head(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// Returns what hyper gets for `piece`.
fn into_bytes(guarded: GuardedInput, piece: &[u8]) -> Vec<u8> {
    match guarded {
        GuardedInput::Unchanged => piece.to_vec(),
        GuardedInput::Encoded(bytes) | GuardedInput::Refused(bytes) => bytes,
    }
}

/// Guards `text` in pieces of `size` bytes; returns the number of bytes that hyper gets up to
/// the one that was made invalid, with it; `None` if there is none.
fn found_after(text: &str, size: usize) -> Option<usize> {
    let mut guard = H1RequestGuard::default();
    let mut fed = 0;
    for piece in text.as_bytes().chunks(size) {
        let guarded = guard.guard_input(piece);
        if let GuardedInput::Refused(bytes) = &guarded {
            let valid = bytes.strip_suffix(INVALID_END).expect("an invalid end");
            assert!(!valid.contains(&0));
            return Some(fed + valid.len() + 1);
        }
        let piece = into_bytes(guarded, piece);
        assert!(!piece.contains(&0));
        fed += piece.len();
    }
    None
}

#[test]
fn only_a_length_that_is_stated_twice_is_found() {
    let (zeros, twice) = ("0".repeat(200), head(&format!("{CL}{CL}")).replace('\r', ""));
    // The fields of heads that are made invalid.
    let ambiguous = [
        format!("{CL}{TE}"),
        format!("{TE}{CL}"),
        format!("{CL}{CL}"),
        format!("{CL}X-A: b\r\n{CL}"),
        "content-LENGTH:4\r\nX: y\r\ntransfer-ENCODING:x\r\n".into(),
        format!("Content-Length: 4\n{TE}").replace("\r\n", "\n"),
        format!("X: {}\r\n{CL}{CL}", "y".repeat(300)),
        format!("Content-Length: {zeros}4\r\n"),
        format!("Content-Length: {}4\r\n", " ".repeat(80)),
        format!("Content-Length: 4{}\r\n", "\r".repeat(80)),
    ];
    // Whole requests that are left as they are. Some have bodies or trailers that look like
    // ambiguous heads.
    let plain = [
        format!("{}body", head(CL)),
        head(""),
        "\r\n\r\n".into(),
        head("Content-Length: 0\r\n"),
        format!("{}5;a=b\r\n\n\n\r\n\n\r\n00A\r\n{CL}\r\n0;x\r\nContent-Length: 4\r\n{TE}\r\n", head(TE))
            .replace("00A", "13"),
        format!("{}{CL}{TE}\r\n", head(&format!("Content-Length: {}\r\n", CL.len() + TE.len() + 2))),
        format!("{}{zeros}{:x};x\r\n\r\n{twice}\r\n{zeros}\r\n\r\n", head(TE), twice.len() + 2),
        format!("{}0\r\nX: y\n\n{twice}\n\r\n\r\n", head(TE)),
        head(&format!("Content-Length-: 5\r\nX-{TE}TE: chunked\r\n{CL}")).replace("\r\n\r\n", "\r\n\r\nbody"),
    ];
    for fields in &ambiguous {
        for before in &plain {
            let end = if fields.contains('\r') { "\r\n" } else { "\n" };
            let text = format!("{before}POST / HTTP/1.1{end}{fields}{end}");
            for size in [1, 2, 3, 7, 64, 100, text.len()] {
                assert_eq!(found_after(&text, size), Some(text.len()), "{size}: {text:?}");
            }
        }
    }
    let all = plain.concat();
    for size in 1..all.len() {
        assert_eq!(found_after(&all, size), None, "{size}");
    }
}

#[test]
fn the_preface_of_h2_is_found_where_a_request_begins() {
    let preface = "PRI * HTTP/2.0\r\n";
    let requests = [String::new(), "\r\n".into(), head(""), format!("{}body", head(CL))];
    for before in requests {
        let text = format!("{before}{preface}\r\nSM\r\n\r\n");
        for size in 1..text.len() {
            assert_eq!(found_after(&text, size), Some(before.len() + preface.len()), "{size}: {text:?}");
        }
    }
    let length = preface.len();
    let body = format!("Content-Length: {length}\r\n");
    let tunnel = "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
    for before in [head(&body), format!("POST / HTTP/1.1\r\n{body}X: y\r\n"), tunnel.into()] {
        assert_eq!(found_after(&format!("{before}{preface}\r\n"), 7), None, "{before:?}");
    }
}

/// Returns what hyper gets if `text` is read in pieces of `size` bytes.
fn encoded(text: &str, size: usize) -> String {
    let (mut guard, mut all) = (H1RequestGuard::default(), Vec::new());
    for piece in text.as_bytes().chunks(size) {
        let guarded = guard.guard_input(piece);
        all.extend(into_bytes(guarded, piece));
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn only_bytes_of_request_targets_are_encoded() {
    let raw = "\r\nGET /a`<b>?q=\"<> HTTP/1.1\r\nHost: a\r\nX: \"<>`\r\n";
    let right = "\r\nGET /a%60%3Cb%3E?q=%22%3C%3E HTTP/1.1\r\nHost: a\r\nX: \"<>`\r\n";
    let fake = "GET /< HTTP/1.1\r\n\r\nGET /> HTTP/1.1\r\n";
    let length = fake.len();
    let bodies = [
        "\r\n".to_owned(),
        format!("Content-Length: {length}\r\n\r\n{fake}"),
        format!("{TE}\r\n{length:x};x=\"<\"\r\n{fake}\r\n0\r\nX: <\r\n\r\n"),
    ];
    for body in &bodies {
        for other in &bodies {
            let text = format!("{raw}{body}{raw}{other}");
            for size in 1..text.len() {
                assert_eq!(encoded(&text, size), format!("{right}{body}{right}{other}"), "{size}");
            }
        }
    }
    for first in ["GET / HTTP/1.1\r\nuPgrade: websocket\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\n\r\n"] {
        let text = format!("{first}{fake}");
        for size in 1..text.len() {
            assert_eq!(encoded(&text, size), text, "what follows an upgrade request may not be HTTP");
        }
    }
}

proptest! {
    #[test]
    fn no_input_causes_a_panic_and_cuts_make_no_difference(
        pieces in proptest::collection::vec(prop_oneof![
            Just(CL.to_owned()), Just(TE.to_owned()), Just("\r\n".to_owned()), Just("\n".to_owned()),
            Just("ffffffffffffffff\r\n".to_owned()), Just("Content-Length: 99999999999999999999\r\n".to_owned()), "[\\x01-\\x7f]{0,40}",
        ], 0..20),
        size in 1_usize..50,
    ) {
        let text = pieces.concat();
        prop_assert_eq!(found_after(&text, size), found_after(&text, text.len().max(1)));
    }
}
