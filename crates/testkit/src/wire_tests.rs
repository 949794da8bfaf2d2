//! Frames survive any split of the stream; what is not the protocol is refused, the same way for every split.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

type Decoded = (Vec<Frame>, Option<ProtocolError>);

fn decode(dialect: Dialect, portions: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::new(dialect);
    let mut frames = Vec::new();
    for portion in portions {
        decoder.buffer().extend_from_slice(portion);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn split<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// What a server writes for a frame.
fn encode(dialect: Dialect, frame: &Frame) -> Vec<u8> {
    match frame {
        Frame::Info(info) => format!("INFO {info} \r\n").into_bytes(),
        Frame::Connect(connect) => format!("CONNECT {connect}\r\n").into_bytes(),
        Frame::Message(message) => encode_message(dialect, message),
        Frame::Interest(subject) => format!("LS+ {subject}\r\n").into_bytes(),
        Frame::NoInterest(subject) => format!("LS- {subject}\r\n").into_bytes(),
        Frame::Ping => b"PING\r\n".to_vec(),
        Frame::Pong => b"PONG\r\n".to_vec(),
        Frame::Ok => b"+OK\r\n".to_vec(),
        Frame::Error(text) => format!("-ERR '{text}'\r\n").into_bytes(),
    }
}

fn encode_message(dialect: Dialect, message: &RawMessage) -> Vec<u8> {
    let verb = match (&message.headers, dialect) {
        (Some(_), _) => "HMSG",
        (None, Dialect::Client) => "MSG",
        (None, Dialect::Leaf | Dialect::Route) => "LMSG",
    };
    let sid = if dialect == Dialect::Client { " 7" } else { "" };
    let reply = message.reply.as_ref().map_or(String::new(), |reply| format!(" {reply}"));
    let block = message.headers.clone().unwrap_or_default();
    let header_size = message.headers.as_ref().map_or(String::new(), |block| format!(" {}", block.len()));
    let total = block.len() + message.body.len();
    let mut bytes = format!("{verb} {}{sid}{reply}{header_size} {total}\r\n{block}", message.subject).into_bytes();
    bytes.extend_from_slice(&message.body);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn messages() -> impl Strategy<Value = Frame> {
    let headers = "NATS/1\\.0( 503)?\r\n(Key-[a-z]{1,5}: [ -~]{0,20}\r\n){0,3}\r\n";
    ("[!-*,-{}~]{1,30}", option::of("[!-*,-{}~]{2,30}"), option::of(headers), vec(any::<u8>(), 0..300)).prop_map(
        |(subject, reply, headers, body)| Frame::Message(RawMessage { subject, reply, headers, body: body.into() }),
    )
}

fn frames(dialect: Dialect) -> impl Strategy<Value = Vec<Frame>> {
    let interest = "[!-~]{1,20}( q 1)?";
    let plain = prop_oneof![
        Just(Frame::Ping),
        Just(Frame::Pong),
        Just(Frame::Ok),
        "[a-zA-Z \"]{0,40}".prop_map(|text| Frame::Error(text.trim().to_owned())),
        "[ -~]{0,30}".prop_map(|text| Frame::Info(serde_json::json!({ "nonce": text }))),
    ];
    let frame = match dialect {
        Dialect::Client => prop_oneof![messages(), plain].boxed(),
        Dialect::Leaf | Dialect::Route => {
            prop_oneof![messages(), plain, interest.prop_map(Frame::Interest), interest.prop_map(Frame::NoInterest)]
                .boxed()
        }
    };
    vec(frame, 0..12)
}

fn check_round_trip(dialect: Dialect, frames: &[Frame], cuts: &[prop::sample::Index]) {
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode(dialect, frame)).collect();
    assert_eq!(decode(dialect, &split(&bytes, cuts)), (frames.to_vec(), None));
}

proptest! {
    #[test]
    fn what_a_server_says_to_a_client_is_read_whatever_the_split(
        frames in frames(Dialect::Client), cuts in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        check_round_trip(Dialect::Client, &frames, &cuts);
    }

    #[test]
    fn what_a_hub_says_to_a_leaf_is_read_whatever_the_split(
        frames in frames(Dialect::Leaf), cuts in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        check_round_trip(Dialect::Leaf, &frames, &cuts);
    }

    #[test]
    fn garbage_is_refused_the_same_way_whatever_the_split(
        bytes in vec(any::<u8>(), 0..400), cuts in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        for dialect in [Dialect::Client, Dialect::Leaf, Dialect::Route] {
            prop_assert_eq!(decode(dialect, &split(&bytes, &cuts)), decode(dialect, &[&bytes]));
        }
    }

    #[test]
    fn damaged_frames_are_refused_or_read_the_same_way_whatever_the_split(
        frames in frames(Dialect::Client),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
        damage in (any::<prop::sample::Index>(), any::<u8>()),
    ) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(|frame| encode(Dialect::Client, frame)).collect();
        if !bytes.is_empty() {
            let place = damage.0.index(bytes.len());
            bytes[place] = damage.1;
        }
        prop_assert_eq!(decode(Dialect::Client, &split(&bytes, &cuts)), decode(Dialect::Client, &[&bytes]));
    }
}

fn check(dialect: Dialect, bytes: &str, expected: &str) {
    let (frames, error) = decode(dialect, &[bytes.as_bytes()]);
    let seen = error.map_or_else(|| format!("{frames:?}"), |error| error.to_string());
    assert!(seen.contains(expected), "{bytes:?} gave {seen}, not {expected}");
}

#[test]
fn lines_that_are_not_the_protocol_are_refused() {
    for line in [
        "\r\n",
        "HELLO\r\n",
        "HTTP/1.1 400 Bad Request\r\n",
        "INFO {\r\n",
        "INFO []\r\n",
        "MSG\r\n",
        "MSG a 0\r\n",
        "MSG a x 0\r\n\r\n",
        "MSG a 1 -1\r\n",
        "MSG a 1 +1\r\nx\r\n",
        "MSG a 1 b c 0\r\n\r\n",
        "MSG a 1 99999999999999999999999\r\n",
        "HMSG a 1 9 8\r\n12345678\r\n",
        "LMSG a 0\r\n\r\n",
        "LS+ a\r\n",
    ] {
        check(Dialect::Client, line, "is not a control line");
    }
    check(Dialect::Leaf, "MSG a 1 0\r\n\r\n", "is not a control line");
    check(Dialect::Leaf, "LMSG a b c 0\r\n\r\n", "is not a control line");
    check(Dialect::Client, "MSG a 1 2\r\nabc\r\n", "not followed by a line end");
    check(Dialect::Client, "MSG a 1 99999999999\r\n", "is larger than");
    check(Dialect::Client, &"x".repeat(LINE_MOST + 1), "longer than");
}

#[test]
fn a_leafs_reply_and_queue_forms_are_read() {
    check(Dialect::Leaf, "LMSG a 0\r\n\r\n", "reply: None");
    check(Dialect::Leaf, "LMSG a r 0\r\n\r\n", "reply: Some(\"r\")");
    check(Dialect::Leaf, "LMSG a + r q1 q2 0\r\n\r\n", "reply: Some(\"r\")");
    check(Dialect::Leaf, "LMSG a | q1 0\r\n\r\n", "reply: None");
    check(Dialect::Leaf, "HMSG a + r q1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", "reply: Some(\"r\")");
}

#[test]
fn headers_and_status_are_found() {
    let headers = Some("NATS/1.0 503 No Responders\r\nNats-Request-Info: {\"acc\":\"A\"}\r\nX: 1\r\n\r\n".to_owned());
    let message = RawMessage { subject: "a".to_owned(), reply: None, headers, body: Bytes::new() };
    assert_eq!(message.status(), Some(503));
    assert_eq!(message.header("nats-request-info"), Some("{\"acc\":\"A\"}"));
    assert_eq!(message.header("NATS/1.0 503"), None);
    assert_eq!(RawMessage { headers: None, ..message }.status(), None);
}
