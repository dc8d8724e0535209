use super::*;
use crate::proxy::tunnel::first_message_budget::FREE_BYTES;

const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// Returns a masked frame. `first` is its first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..65_536 => {
            frame.push(0xfe);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(0xff);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Wait,
    Connect(Vec<u8>, Vec<u8>),
    Other(Vec<u8>),
    Close(Vec<u8>),
    Refuse(String),
    Malformed,
}

/// Returns the verdict on `stream` in pieces of `size`, with a check that refuses messages that
/// contain `admin`.
fn verdict(stream: &[u8], size: usize, objects_only: bool) -> Outcome {
    let check = |message: &[u8]| {
        if message.windows(5).any(|word| word == b"admin") {
            Checked::Refused("no".to_owned())
        } else if message.starts_with(b"{}") {
            Checked::Other
        } else {
            Checked::Connect(Box::pin(async {}))
        }
    };
    let mut first = FirstMessage::new(objects_only, FirstMessageBudget::new(1 << 20), Box::new(check));
    let fed = stream.chunks(size).map(|piece| match first.check_next_bytes(piece) {
        Verdict::Wait | Verdict::Control(_) => Outcome::Wait,
        Verdict::Malformed(_) => Outcome::Malformed,
        Verdict::Connect { message, rest, .. } => Outcome::Connect(message.to_vec(), rest.to_vec()),
        Verdict::Other(held) => Outcome::Other(held.to_vec()),
        Verdict::Close(held) => Outcome::Close(held.to_vec()),
        Verdict::Refuse(reason) => Outcome::Refuse(reason),
    });
    fed.into_iter().find(|verdict| *verdict != Outcome::Wait).unwrap_or(Outcome::Wait)
}

#[test]
fn the_first_message_is_checked_however_it_is_cut() {
    let ping = frame(0x89, b"admin");
    let whole = frame(0x81, b"{\"a\":\"admin\"}");
    let split = [frame(0x01, b"{\"a\":\"ad"), ping.clone(), frame(0x00, b"mi"), frame(0x80, b"n\"}")].concat();
    let binary = frame(0x82, b" \n{\"a\":\"admin\"}");
    for stream in [&whole, &[ping.clone(), whole.clone()].concat(), &split, &binary] {
        for size in [1, 2, 3, 7, stream.len()] {
            for objects_only in [true, false] {
                assert_eq!(verdict(stream, size, objects_only), Outcome::Refuse("no".into()), "{size} {stream:x?}");
            }
        }
    }
    let (fine, next) = ([frame(0x01, b"{\"a\":"), ping, frame(0x80, b"1}")].concat(), frame(0x81, b"{\"admin\":1}"));
    let both = [&fine[..], &next].concat();
    assert_eq!(verdict(&both, both.len(), false), Outcome::Connect(fine, next), "only the first message passes");
}

#[test]
fn frames_that_could_hide_a_message_are_refused() {
    let unmasked = [&[0x81, 5][..], b"admin"].concat();
    // Frames with reserved bits, without a mask, in a wrong order, with an unknown opcode;
    // control frames that are fragmented or too long.
    let malformed = [
        frame(0xc1, b"{}"),
        frame(0xa1, b"{}"),
        unmasked,
        frame(0x80, b"{}"),
        [frame(0x01, b"{"), frame(0x81, b"{}")].concat(),
        frame(0x83, b"{}"),
        frame(0x09, b"{}"),
        frame(0x88, &[b'x'; 126]),
        [frame(0x89, b""), frame(0x89, &[b'x'; 126])].concat(),
    ];
    let too_long = [
        frame(0x81, &[b'{'; MAX_MESSAGE + 1]),
        [frame(0x01, &[b'{'; MAX_MESSAGE]), frame(0x80, b"{")].concat(),
        [frame(0x01, b"{"), frame(0x00, b"").repeat(MAX_HELD)].concat(),
        [frame(0x01, b"{"), frame(0x89, b"").repeat(MAX_HELD)].concat(),
    ];
    for objects_only in [true, false] {
        for stream in &malformed {
            assert_eq!(
                verdict(stream, 4096, objects_only),
                Outcome::Malformed,
                "{:x?}",
                &stream[..stream.len().min(16)]
            );
        }
        for stream in &too_long {
            assert!(matches!(verdict(stream, 4096, objects_only), Outcome::Refuse(_)), "{:x?}", &stream[..16]);
        }
    }
}

#[test]
fn control_frames_before_the_message_pass_at_once() {
    let mut first = FirstMessage::new(true, FirstMessageBudget::new(1 << 20), Box::new(|_: &[u8]| Checked::Other));
    let (ping, pong) = (frame(0x89, b"{"), frame(0x8a, b""));
    let connect = frame(0x81, b"{}");
    let mut passed = Vec::new();
    for piece in [&ping[..3], &[&ping[3..], &pong, &connect[..4]].concat(), &pong[..0]] {
        if let Verdict::Control(frames) = first.check_next_bytes(piece) {
            passed.extend_from_slice(&frames);
        }
    }
    assert_eq!(passed, [&ping[..], &pong].concat());
    let Verdict::Other(message) = first.check_next_bytes(&connect[4..]) else { panic!("the message is held") };
    assert_eq!(message, connect);
}

#[test]
fn the_bytes_of_all_clients_beyond_their_free_bytes_are_limited() {
    let budget = FirstMessageBudget::new(2 * 100);
    let client = || FirstMessage::new(false, Arc::clone(&budget), Box::new(|_: &[u8]| Checked::Other));
    let begun = &frame(0x81, &[b'{'; 20_000])[..FREE_BYTES];
    let mut clients = [client(), client(), client()];
    for client in &mut clients {
        assert!(matches!(client.check_next_bytes(begun), Verdict::Wait));
    }
    assert!(matches!(clients[0].check_next_bytes(&[0; 60]), Verdict::Wait));
    assert!(matches!(clients[1].check_next_bytes(&[0; 60]), Verdict::Refuse(_)));
    assert!(matches!(clients[1].check_next_bytes(&[0; 40]), Verdict::Wait));
    drop(clients);
    assert!(matches!(client().check_next_bytes(&[begun, &[0; 100]].concat()), Verdict::Wait));
}

#[test]
fn other_protocols_pass_at_once_if_only_objects_are_checked() {
    let start = &frame(0x82, &[7; 1_000_000])[..100];
    assert_eq!(verdict(start, 100, true), Outcome::Other(start.to_vec()));
    assert!(matches!(verdict(start, 100, false), Outcome::Refuse(_)));
    let close = frame(0x88, &[3, 0xe8]);
    for size in [1, 100] {
        assert_eq!(verdict(&[&close[..], b"more"].concat(), size, false), Outcome::Close(close.clone()));
    }
}
