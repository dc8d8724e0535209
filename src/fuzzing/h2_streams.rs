//! The fuzz target for HTTP/2: requests, trailers, resets and errors of a client, while loopgate
//! sends interim responses between hyper's frames.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::labels::Protocol;
use crate::proxy::{Activity, Downstream, DroppedHeads, HeadRefusal, HeadTracker, RequestHandle};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The first bytes of the header block of an interim response with the status 103. hyper never
/// encodes a final response like this.
const HINTS: &[u8] = b"\x08\x03103";

/// The number of kinds of acts; see [`frames_of_act`].
const KINDS: u8 = 12;

/// The number of times that the connection is polled after it has read and written everything.
const ROUNDS: usize = 20;

fn encode_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns a header field as an HPACK literal without indexing (RFC 7541 section 6.2.2). `name` and
/// `value` must be short.
fn encode_field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("fields are short");
    [&[0, length(name)][..], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// Returns the header block of a request whose path is its stream id, so that the service knows the
/// stream.
fn header_block(stream: u32) -> Vec<u8> {
    let path = format!("/{stream}");
    [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", path.as_str())]
        .map(|(name, value)| encode_field(name, value))
        .concat()
}

/// Returns the frames of the act that `byte` encodes. `next` is the id of the next stream.
fn frames_of_act(byte: u8, next: &mut u32) -> Vec<u8> {
    let mut new = || {
        *next += 2;
        *next - 2
    };
    match byte % KINDS {
        0..=2 => {
            let stream = new();
            encode_frame(HEADERS, END_HEADERS | END_STREAM, stream, &header_block(stream))
        }
        3 => {
            let stream = new();
            encode_frame(HEADERS, END_HEADERS, stream, &header_block(stream))
        }
        4 => {
            let stream = new();
            let block = header_block(stream);
            let (first, second) = block.split_at(usize::from(byte) % block.len());
            [encode_frame(HEADERS, END_STREAM, stream, first), encode_frame(CONTINUATION, END_HEADERS, stream, second)]
                .concat()
        }
        // This head is malformed, since it has no path.
        5 => encode_frame(HEADERS, END_HEADERS | END_STREAM, new(), &encode_field(":method", "GET")),
        // This head is larger than the limit in `run_connection`.
        6 => {
            let stream = new();
            encode_frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                stream,
                &[header_block(stream), encode_field("x", &"y".repeat(100)).repeat(4)].concat(),
            )
        }
        7 => trailer_frames(byte / KINDS, next.saturating_sub(4) | 1),
        8 => encode_frame(RST_STREAM, 0, next.saturating_sub(2) | 1, &[0, 0, 0, 8]),
        9 => encode_frame(DATA, byte & END_STREAM, next.saturating_sub(2) | 1, b"data"),
        10 => match byte / KINDS {
            // 1 to 3 are connection errors (RFC 9113 section 5.4.1).
            1 => encode_frame(PING, 0, 0, &[0; 7]),
            2 => encode_frame(DATA, 0, 0, b"data"),
            3 => encode_frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            _ => encode_frame(PING, 0, 0, &[0; 8]),
        },
        _ => encode_frame(SETTINGS, 0, 0, &[0, 1, 0, 0, byte & 16, 0]),
    }
}

/// Returns trailers on `stream`. The bits of `form` choose their form: 1 adds a pseudo-header
/// field, 2 an update of the dynamic table's size, 4 padding, 8 a priority, and 16 a CONTINUATION
/// frame.
fn trailer_frames(form: u8, stream: u32) -> Vec<u8> {
    let has = |bit: u8| form & bit != 0;
    let fields = if has(1) {
        [encode_field(":path", "/"), encode_field("x-bad", "1")].concat()
    } else {
        encode_field("x-sum", "1")
    };
    // The block begins with an HPACK update of the dynamic table's size to 4096, the size that the
    // table has already.
    let block = if has(2) { [&[0x3f, 0xe1, 0x1f][..], &fields].concat() } else { fields };
    let (mut flags, mut payload) = (END_STREAM, Vec::new());
    if has(4) {
        flags |= PADDED;
        payload.push(3);
    }
    if has(8) {
        flags |= PRIORITY;
        payload.extend([0, 0, 0, 0, 9]);
    }
    let (first, second) = block.split_at(if has(16) { block.len() / 2 } else { block.len() });
    payload.extend(first);
    if has(4) {
        payload.extend([0; 3]);
    }
    if !has(16) {
        return encode_frame(HEADERS, flags | END_HEADERS, stream, &payload);
    }
    [encode_frame(HEADERS, flags, stream, &payload), encode_frame(CONTINUATION, END_HEADERS, stream, second)].concat()
}

/// The client's side of a connection. Each read gets the next piece, or is pending if that is
/// `None`. Every other write is pending; the others take `most` bytes at most.
struct Client {
    pieces: VecDeque<Option<Vec<u8>>>,
    written: Rc<RefCell<Vec<u8>>>,
    most: usize,
    is_full: bool,
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(Some(mut piece)) = self.pieces.pop_front() else { return Poll::Pending };
        let rest = piece.split_off(piece.len().min(buf.remaining()));
        buf.put_slice(&piece);
        if !rest.is_empty() {
            self.pieces.push_front(Some(rest));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.is_full = !self.is_full;
        if self.is_full {
            return Poll::Pending;
        }
        let count = buf.len().min(self.most);
        self.written.borrow_mut().extend_from_slice(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The executor for the tasks that hyper spawns for streams, which run when [`Tasks::poll`] is
/// called.
#[derive(Clone, Default)]
struct Tasks(Rc<RefCell<Vec<Task>>>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.borrow_mut().push(Box::pin(task));
    }
}

impl Tasks {
    fn poll(&self, cx: &mut Context<'_>) {
        let mut tasks = std::mem::take(&mut *self.0.borrow_mut());
        tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
        self.0.borrow_mut().append(&mut tasks);
    }
}

/// Serves an HTTP/2 connection. The first byte of `data` is the size of reads and writes, and each
/// further byte an act of the client.
///
/// Asserts that:
/// - An interim response is sent only on the stream of its request, before the final response, and
///   between hyper's frames.
/// - Trailers with a pseudo-header field do not reach the service.
/// - Each head is exactly one of: a request, a refused head, and a head that was dropped because
///   the client reset its stream or the connection ended.
pub fn fuzz_h2_streams(data: &[u8]) {
    run_connection(data);
}

/// What happened on a connection.
#[derive(Debug, Default)]
struct Outcome {
    /// The number of requests that the service got.
    requests: usize,
    /// The heads that were refused before the service got a request.
    refused: Vec<HeadRefusal>,
    /// The number of interim responses that the client got.
    hints: usize,
    /// The number of trailer sections that the service got.
    trailers: usize,
}

/// What the client sends.
struct Script {
    /// The bytes of each read; `None` is a pause of the client.
    pieces: VecDeque<Option<Vec<u8>>>,
    /// The number of acts of each kind.
    kinds: [usize; KINDS as usize],
    /// The number of streams that the acts begin.
    begun: usize,
}

impl Script {
    fn new(size: u8, acts: &[u8]) -> Self {
        let mut next = 1;
        let mut bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), encode_frame(SETTINGS, 0, 0, &[])].concat();
        let mut pieces = VecDeque::new();
        let mut kinds = [0; KINDS as usize];
        for byte in acts.iter().take(200) {
            kinds[usize::from(byte % KINDS)] += 1;
            bytes.extend(frames_of_act(*byte, &mut next));
            // The client pauses after an act with the high bit.
            if byte & 0x80 != 0 {
                pieces.extend(bytes.chunks(usize::from(size).max(1) * 8).map(|piece| Some(piece.to_vec())));
                pieces.push_back(None);
                bytes.clear();
            }
        }
        pieces.extend(bytes.chunks(usize::from(size).max(1) * 8).map(|piece| Some(piece.to_vec())));
        // Trailers begin the first stream if no request did.
        let begun = usize::try_from(next / 2).expect("few streams").max(usize::from(kinds[7] > 0));
        Self { pieces, kinds, begun }
    }
}

/// Asserts that each stream begun by one of the acts counted in `kinds` became a request, a refused
/// head or a dropped head.
fn assert_counted(
    (kinds, begun): ([usize; KINDS as usize], usize),
    requests: usize,
    refused: &[HeadRefusal],
    dropped: usize,
    has_ended: bool,
) {
    let found = requests + refused.len() + dropped;
    assert!(
        // Heads after the end of the connection are not read.
        if has_ended { found <= begun } else { found == begun },
        "{requests} requests, {refused:?} and {dropped} dropped, of {begun} streams; has ended: {has_ended}"
    );
    let too_large = refused.iter().filter(|refused| **refused == HeadRefusal::TooLarge).count();
    assert!(too_large <= kinds[6], "{too_large} refused as too large, of {}", kinds[6]);
    let malformed = refused.iter().filter(|refused| **refused == HeadRefusal::Malformed).count();
    // Trailers may begin a stream, or reset one while heads are dropped; both count as a malformed
    // head. A head after the frame that is a connection error may count as the cause of the error.
    let others = kinds[7] + 2 * usize::from(kinds[7..=10].iter().sum::<usize>() > 0);
    assert!(malformed <= kinds[5] + others, "{malformed} refused as malformed, of {}", kinds[5]);
    assert!(has_ended || dropped <= kinds[8], "{dropped} dropped, and {} reset by the client", kinds[8]);
}

/// Serves the connection that `data` encodes until it ends, or until the server has written nothing
/// for as many polls as there are reads, and [`ROUNDS`] more.
fn run_connection(data: &[u8]) -> Outcome {
    let Some((&size, acts)) = data.split_first() else { return Outcome::default() };
    let Script { pieces, kinds, begun } = Script::new(size, acts);
    let written = Rc::<RefCell<Vec<u8>>>::default();
    let rounds = pieces.len() + ROUNDS;
    let mut left = rounds;
    let mut most_written = 0;
    let client = Client { pieces, written: Rc::clone(&written), most: 1 + usize::from(size) * 4, is_full: true };
    let head_tracker = HeadTracker::new(Protocol::H2);
    let stream = Downstream::with_observer(
        client,
        Protocol::H2,
        Activity::new(Protocol::H2),
        std::sync::Arc::clone(&head_tracker),
        Counter::default(),
    );
    let tasks = Tasks::default();
    let seen = Rc::<RefCell<Vec<(u32, RequestHandle)>>>::default();
    let trailers = Rc::<Cell<usize>>::default();
    let mut builder = http2::Builder::new(tasks.clone());
    builder.max_concurrent_streams(4).max_header_list_size(400).max_local_error_reset_streams(1000);
    let connection = builder.serve_connection(
        TokioIo::new(stream),
        service_fn(|request: Request<Incoming>| {
            let handle = head_tracker.begin_request();
            let stream: u32 = request.uri().path().trim_start_matches('/').parse().expect("the path is a stream");
            seen.borrow_mut().push((stream, handle.clone()));
            answer_request(stream, handle, request.into_body(), Rc::clone(&trailers))
        }),
    );
    let mut connection = pin!(connection);
    let mut refused = Vec::new();
    let mut dropped = DroppedHeads::default();
    let mut take_refused_and_dropped = |all: &mut Vec<_>| {
        let (refused, more) = head_tracker.take_refused_and_dropped();
        all.extend(refused.into_iter().map(|refused| refused.why));
        dropped.by_client += more.by_client;
        dropped.by_closing += more.by_closing;
    };
    let mut has_ended = false;
    let mut cx = Context::from_waker(Waker::noop());
    while left > 0 {
        if connection.as_mut().poll(&mut cx).is_ready() {
            has_ended = true;
            break;
        }
        head_tracker.end_round_unless_blocked();
        take_refused_and_dropped(&mut refused);
        for (stream, handle) in &*seen.borrow() {
            assert!(handle.stream().is_none_or(|known| known == *stream), "a request of stream {stream}: {handle:?}");
        }
        tasks.poll(&mut cx);
        left = if written.borrow().len() > most_written { rounds } else { left - 1 };
        most_written = written.borrow().len();
    }
    if has_ended {
        head_tracker.end_round();
        take_refused_and_dropped(&mut refused);
    }
    let (requests, dropped) = (seen.borrow().len(), dropped.by_client + dropped.by_closing);
    assert_counted((kinds, begun), requests, &refused, dropped, has_ended);
    Outcome { requests, refused, hints: check_frames(&written.borrow()), trailers: trailers.get() }
}

/// Responds to a request after a few polls. Each poll sends an interim response and reads what has
/// arrived of the body. Adds the trailers that arrive to `count`.
async fn answer_request(
    stream: u32,
    handle: RequestHandle,
    mut body: Incoming,
    count: Rc<Cell<usize>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let fields = HeaderMap::from_iter([("x-for".parse().expect("a name"), HeaderValue::from(stream))]);
    let mut polls = 0;
    poll_fn(|cx| {
        handle.send_interim(StatusCode::EARLY_HINTS, &fields);
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(cx) {
            let Ok(trailers) = frame.into_trailers() else { continue };
            let names: BTreeSet<_> = trailers.keys().map(HeaderName::as_str).collect();
            assert_eq!(names, BTreeSet::from(["host", "x-sum"]), "trailers that h2 must refuse");
            count.set(count.get() + 1);
        }
        polls += 1;
        if polls > stream % 5 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    Ok(Response::new(Full::new(Bytes::from(vec![0; usize::try_from(stream).unwrap_or(0) * 10]))))
}

/// Checks the frames that the client got, and returns the number of interim responses among them.
fn check_frames(mut bytes: &[u8]) -> usize {
    let mut hints = 0;
    let mut ended = BTreeSet::new();
    let mut in_block = false;
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags, stream) = (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        let Some((payload, rest)) = rest.split_at_checked(length) else { return hints };
        assert!(kind <= CONTINUATION && in_block == (kind == CONTINUATION), "a frame of kind {kind}");
        match kind {
            HEADERS if payload.starts_with(HINTS) => {
                assert!(!ended.contains(&stream), "an interim response after the end of stream {stream}");
                let wanted = encode_field("x-for", &stream.to_string());
                hints += 1;
                assert_eq!((flags, &payload[HINTS.len()..]), (END_HEADERS, wanted.as_slice()), "stream {stream}");
            }
            HEADERS | RST_STREAM => {
                ended.insert(stream);
                in_block = kind == HEADERS && flags & END_HEADERS == 0;
            }
            CONTINUATION => in_block = flags & END_HEADERS == 0,
            _ => {}
        }
        bytes = rest;
    }
    hints
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// h2 resets a request for its malformed trailers while the refusal of another stream, one too
    /// many, is not written yet. Only the latter is a refused head.
    #[test]
    fn a_reset_of_a_request_is_not_taken_for_a_refusal_that_is_not_written_yet() {
        let outcome = run_connection(&[101, 63, 163, 196, 196, 160, 184, 12]);
        assert_eq!((outcome.requests, outcome.refused), (5, vec![HeadRefusal::TooManyStreams]));
    }

    proptest! {
        #[test]
        fn interim_responses_go_to_the_streams_of_their_requests(data in vec(any::<u8>(), 1..60)) {
            fuzz_h2_streams(&data);
        }

        #[test]
        fn every_valid_request_gets_its_own(acts in vec(select(vec![0_u8, 4, 132, 136]), 1..4), size: u8) {
            let outcome = run_connection(&[vec![size], acts.clone()].concat());
            prop_assert!(outcome.hints >= acts.len(), "{:?}", outcome);
        }

        #[test]
        fn every_head_is_a_request_or_refused(acts in vec(select(vec![0_u8, 3, 4, 5, 6, 133]), 1..5), size: u8) {
            let outcome = run_connection(&[vec![size], acts.clone()].concat());
            let kinds = [HeadRefusal::Malformed, HeadRefusal::TooLarge];
            let refused = kinds.map(|kind| outcome.refused.iter().filter(|refused| **refused == kind).count());
            let wanted = [5, 6].map(|act| acts.iter().filter(|byte| **byte == act).count());
            prop_assert_eq!(refused, wanted);
            prop_assert!(outcome.requests <= acts.len() - outcome.refused.len());
        }

        #[test]
        fn an_error_of_the_connection_refuses_no_head(heads in 0_usize..4, fault in 1_u8..4, size: u8) {
            let outcome = run_connection(&[vec![size], vec![0; heads], vec![10 + 12 * fault]].concat());
            prop_assert_eq!(outcome.refused, vec![]);
        }

        #[test]
        fn well_formed_trailers_arrive_and_others_do_not(form in 0_u8..20, size: u8) {
            let outcome = run_connection(&[size, 3, 7 + 12 * form]);
            prop_assert_eq!(outcome.trailers, usize::from(form % 2 == 0));
        }
    }
}
