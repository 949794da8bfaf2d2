//! The NATS text protocol as a server speaks it to clients, leaf nodes and routes: bytes in any portions become frames.
//!
//! It refuses lines and bodies beyond its limits and everything that is not the protocol. It writes nothing: attackers
//! compose their own bytes.

use bytes::{Bytes, BytesMut};
use serde_json::Value;

/// A longer control line is not a server's; an INFO with large permission lists stays far below.
const LINE_MOST: usize = 256 * 1024;
/// More than any server here is configured to deliver.
const BODY_MOST: usize = 16 * 1024 * 1024;

/// Who is spoken to: the same verbs have other arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Client,
    Leaf,
    Route,
}

/// A delivered message, as it was on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    pub subject: String,
    pub reply: Option<String>,
    /// The whole block with its version line, such as `NATS/1.0 503\r\n\r\n`.
    pub headers: Option<String>,
    pub body: Bytes,
}

impl RawMessage {
    /// The first value of a header; names are matched without regard to case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.headers.as_deref()?.lines().skip(1);
        let mut pairs = lines.filter_map(|line| line.split_once(':'));
        pairs.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The number in the version line, such as 503 where nobody answers.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.headers.as_deref()?.lines().next()?.split_whitespace().nth(1)?.parse().ok()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Info(Value),
    Connect(Value),
    Message(RawMessage),
    /// `LS+`, `RS+` and the like, with all arguments.
    Interest(String),
    NoInterest(String),
    Ping,
    Pong,
    Ok,
    Error(String),
}

/// What is not the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("a control line is longer than {LINE_MOST} bytes")]
    LongLine,
    #[error("{0:?} is not a control line of this protocol")]
    Line(String),
    #[error("a body of {0} bytes is larger than {BODY_MOST}")]
    LargeBody(usize),
    #[error("the body on {0:?} is not followed by a line end")]
    BodyEnd(String),
}

/// A control line: complete in itself, or the announcement of a body.
enum Line {
    Whole(Frame),
    Announces(Announced),
}

struct Announced {
    subject: String,
    reply: Option<String>,
    header_size: Option<usize>,
    total_size: usize,
}

/// Collects bytes and gives frames.
pub(crate) struct Decoder {
    dialect: Dialect,
    buffer: BytesMut,
}

impl Decoder {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { dialect, buffer: BytesMut::new() }
    }

    /// Where read bytes go.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next complete frame, or `None` when more bytes are needed.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let found = self.buffer.iter().take(LINE_MOST + 1).position(|byte| *byte == b'\n');
        let Some(end) = found else {
            return if self.buffer.len() > LINE_MOST { Err(ProtocolError::LongLine) } else { Ok(None) };
        };
        let text = String::from_utf8_lossy(&self.buffer[..end]);
        match parse_line(self.dialect, text.trim_end_matches('\r'))? {
            Line::Whole(frame) => {
                let _ = self.buffer.split_to(end + 1);
                Ok(Some(frame))
            }
            Line::Announces(announced) => self.take_message(end + 1, announced),
        }
    }

    fn take_message(&mut self, start: usize, announced: Announced) -> Result<Option<Frame>, ProtocolError> {
        let end = start + announced.total_size;
        if self.buffer.len() < end + 2 {
            return Ok(None);
        }
        if &self.buffer[end..end + 2] != b"\r\n" {
            return Err(ProtocolError::BodyEnd(announced.subject));
        }
        let mut body = self.buffer.split_to(end + 2).freeze().slice(start..end);
        let headers = announced.header_size.map(|size| body.split_to(size));
        let headers = headers.map(|block| String::from_utf8_lossy(&block).into_owned());
        let Announced { subject, reply, .. } = announced;
        Ok(Some(Frame::Message(RawMessage { subject, reply, headers, body })))
    }
}

fn parse_line(dialect: Dialect, line: &str) -> Result<Line, ProtocolError> {
    let (verb, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let rest = rest.trim();
    let refused = || ProtocolError::Line(line.chars().take(120).collect());
    let json = || serde_json::from_str::<Value>(rest).ok().filter(Value::is_object).ok_or_else(refused);
    let frame = match (verb.to_ascii_uppercase().as_str(), dialect) {
        ("INFO", _) => Frame::Info(json()?),
        ("CONNECT", _) => Frame::Connect(json()?),
        ("PING", _) => Frame::Ping,
        ("PONG", _) => Frame::Pong,
        ("+OK", _) => Frame::Ok,
        ("-ERR", _) => Frame::Error(rest.trim_matches('\'').to_owned()),
        ("LS+", Dialect::Leaf | Dialect::Route) | ("RS+" | "A+", Dialect::Route) => Frame::Interest(rest.to_owned()),
        ("LS-", Dialect::Leaf | Dialect::Route) | ("RS-" | "A-", Dialect::Route) => Frame::NoInterest(rest.to_owned()),
        ("MSG", Dialect::Client) | ("LMSG", Dialect::Leaf) => {
            return announce(dialect, rest, false).map_or_else(|| Err(refused()), within_limit);
        }
        ("HMSG", Dialect::Client | Dialect::Leaf) => {
            return announce(dialect, rest, true).map_or_else(|| Err(refused()), within_limit);
        }
        _ => return Err(refused()),
    };
    Ok(Line::Whole(frame))
}

fn within_limit(announced: Announced) -> Result<Line, ProtocolError> {
    if announced.total_size > BODY_MOST {
        return Err(ProtocolError::LargeBody(announced.total_size));
    }
    Ok(Line::Announces(announced))
}

/// `<subject> <sid> [reply] [header size] <size>` for clients; leaf nodes have no sid and write `+ <reply> <queues>` or
/// `| <queues>` where queue groups are meant.
fn announce(dialect: Dialect, rest: &str, has_headers: bool) -> Option<Announced> {
    let mut words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let total_size = parse_size(words.pop()?)?;
    let header_size = if has_headers { Some(parse_size(words.pop()?)?) } else { None };
    if header_size.is_some_and(|size| size > total_size) {
        return None;
    }
    let (subject, mut rest) = words.split_first()?;
    if dialect == Dialect::Client {
        let (sid, after) = rest.split_first()?;
        parse_size(sid)?;
        rest = after;
    }
    let reply = match (dialect, rest) {
        (_, []) => None,
        (Dialect::Leaf, ["+", reply, _, ..]) => Some((*reply).to_owned()),
        (Dialect::Leaf, ["|", _, ..]) => None,
        (_, [reply]) => Some((*reply).to_owned()),
        (_, [_, _, ..]) => return None,
    };
    Some(Announced { subject: (*subject).to_owned(), reply, header_size, total_size })
}

fn parse_size(text: &str) -> Option<usize> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
