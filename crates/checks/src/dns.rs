//! `dns`: one question to one name server, over UDP and, when the answer is cut, over TCP.
//!
//! The question is always asked: a resolver library would answer `localhost`, the hosts file and its cache by itself,
//! and the check could not fail. One attempt, no other server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use bulkhead_bus::payload::Reason;
use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::fields::Fields;
use crate::kind::CheckType;
use crate::{Detail, Failure, Run};

const PORT: u16 = 53;
const SYSTEM_SETTINGS: &str = "/etc/resolv.conf";
/// Without EDNS a server sends at most 512 bytes; more is read so that a bad server is seen as one.
const DATAGRAM_BYTES_MOST: usize = 4_096;
const ANSWERS_MOST: usize = 8;
/// Of one answer, so that all of them fit into a result's detail even when every character is escaped.
const ANSWER_CHARACTERS_MOST: usize = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record(RecordType);

impl FromStr for Record {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = match text {
            "A" => RecordType::A,
            "AAAA" => RecordType::AAAA,
            "CNAME" => RecordType::CNAME,
            "MX" => RecordType::MX,
            "NS" => RecordType::NS,
            "PTR" => RecordType::PTR,
            "SOA" => RecordType::SOA,
            "SRV" => RecordType::SRV,
            "TXT" => RecordType::TXT,
            _ => return Err(format!("record {text:?} is not one of A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT")),
        };
        Ok(Self(kind))
    }
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameServer {
    /// The first of `/etc/resolv.conf`, as it is at that moment.
    System,
    At(SocketAddr),
}

impl FromStr for NameServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().or_else(|_| text.parse().map(|address: IpAddr| SocketAddr::new(address, PORT)));
        let is_port = |address: &SocketAddr| address.port() != 0;
        let address = address.ok().filter(is_port);
        let rule =
            || format!("server {text:?} is not an address: write for example 192.0.2.53:53 or [2001:db8::53]:53");
        address.map(Self::At).ok_or_else(rule)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSpec {
    question: Query,
    server: NameServer,
}

impl DnsSpec {
    /// # Errors
    /// When `target` is not a domain name; the message shows it.
    fn new(target: &str, record: Record, server: NameServer) -> Result<Self, String> {
        let name = Name::from_ascii(target).ok().filter(|_| !target.is_empty());
        let mut name = name.ok_or_else(|| format!("target {target:?} is not a domain name"))?;
        name.set_fqdn(true);
        Ok(Self { question: Query::query(name, record.0), server })
    }
}

async fn find_server(server: NameServer) -> Result<SocketAddr, Failure> {
    let internal = || Failure::of_poller(Reason::Internal);
    match server {
        NameServer::At(address) => Ok(address),
        NameServer::System => {
            let text = tokio::fs::read(SYSTEM_SETTINGS).await.map_err(|_| internal())?;
            let (settings, _) = parse_resolv_conf(text).map_err(|_| internal())?;
            let first = settings.name_servers().first().map(|server| SocketAddr::new(server.ip, PORT));
            first.ok_or_else(internal)
        }
    }
}

/// Whether `answer` belongs to `question`.
fn is_answer_to(question: &Message, answer: &Message) -> bool {
    use hickory_resolver::proto::op::MessageType;
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && (answer.queries == question.queries || answer.queries.is_empty())
}

async fn ask_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Message, Failure> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let ask = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        socket.send(bytes).await?;
        let mut buffer = vec![0; DATAGRAM_BYTES_MOST];
        loop {
            let size = socket.recv(&mut buffer).await?;
            match Message::from_vec(&buffer[..size]) {
                Ok(answer) if is_answer_to(question, &answer) => return Ok(Ok(answer)),
                // Somebody's guess, or an answer that comes late: not what was asked for.
                Ok(_) => {}
                Err(_) if buffer[..size].starts_with(&bytes[..2]) => {
                    return Ok(Err(Failure::of_target(Reason::BadAnswer)));
                }
                Err(_) => {}
            }
        }
    };
    let asked: std::io::Result<Result<Message, Failure>> = ask.await;
    asked.map_err(|error| Failure::of_socket(&error))?
}

async fn ask_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Message, Failure> {
    let ask = async {
        let mut stream = TcpStream::connect(server).await?;
        let mut framed = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
        framed.extend_from_slice(bytes);
        stream.write_all(&framed).await?;
        let size = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(size)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    let asked: std::io::Result<Vec<u8>> = ask.await;
    let answer = asked.map_err(|error| Failure::of_socket(&error))?;
    let answer = Message::from_vec(&answer).ok().filter(|answer| is_answer_to(question, answer));
    answer.ok_or(Failure::of_target(Reason::BadAnswer))
}

/// What an answer says, with what was asked for in `detail`.
fn judge(question: &Query, answer: &Message, detail: &mut Detail) -> Result<(), Failure> {
    let code = answer.metadata.response_code;
    let wanted = answer.answers.iter().filter(|record| record.record_type() == question.query_type());
    let shown = |text: String| Value::from(text.chars().take(ANSWER_CHARACTERS_MOST).collect::<String>());
    let answers: Vec<Value> = wanted.take(ANSWERS_MOST).map(|record| shown(record.data.to_string())).collect();
    if code != ResponseCode::NoError {
        detail.insert("rcode".to_owned(), code.to_str().into());
        let is_missing = code == ResponseCode::NXDomain;
        return Err(Failure::of_target(if is_missing { Reason::NameNotFound } else { Reason::NameServerFailed }));
    }
    // The name exists, but not with such a record.
    let is_empty = answers.is_empty();
    detail.insert("answers".to_owned(), answers.into());
    if is_empty { Err(Failure::of_target(Reason::NameNotFound)) } else { Ok(()) }
}

impl CheckType for DnsSpec {
    fn read(target: Option<&str>, fields: &mut Fields<'_>) -> Option<Self> {
        let record = fields.text("record").unwrap_or("A").parse();
        let record = fields.keep(record);
        let server = fields.text("server").map_or(Ok(NameServer::System), str::parse);
        let server = fields.keep(server);
        // The name is judged also where its record is not one.
        let spec = target.map(|target| Self::new(target, record.unwrap_or(Record(RecordType::A)), NameServer::System));
        let spec = spec.and_then(|spec| fields.keep(spec));
        Some(Self { server: server?, ..spec.filter(|_| record.is_some())? })
    }

    async fn probe(&self, run: &Run<'_>, detail: &mut Detail) -> Result<Duration, Failure> {
        let server = find_server(self.server).await?;
        detail.insert("server".to_owned(), server.to_string().into());
        match self.server {
            NameServer::At(address) => run.prober.rules().permit(&[address.ip()], detail)?,
            // The machine's own: clouds have theirs among what is denied, and its owner chose it.
            NameServer::System => {}
        }
        ask(&self.question, server, detail).await
    }
}

async fn ask(asked: &Query, server: SocketAddr, detail: &mut Detail) -> Result<Duration, Failure> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(asked.clone());
    let bytes = question.to_vec().map_err(|_| Failure::of_poller(Reason::Internal))?;
    let began = Instant::now();
    let mut answer = ask_udp(server, &question, &bytes).await?;
    if answer.metadata.truncation {
        answer = ask_tcp(server, &question, &bytes).await?;
    }
    let latency = began.elapsed();
    judge(asked, &answer, detail).map_err(|failure| failure.after(latency))?;
    Ok(latency)
}

#[cfg(test)]
mod tests {
    use crate::tests::measure;
    use bulkhead_bus::payload::{DETAIL_BYTES_MAX, Measured, Outcome, Reason};
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::rdata::{A, TXT};
    use hickory_proto::rr::{RData, Record};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    fn answer_to(question: &Message) -> Message {
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(question.queries[0].clone());
        let name = question.queries[0].name().clone();
        let record = |data| Record::from_rdata(name.clone(), 60, data);
        match name.to_ascii().trim_end_matches('.') {
            "www.example" => {
                answer.add_answer(record(RData::A(A::new(192, 0, 2, 1))));
                answer.add_answer(record(RData::A(A::new(192, 0, 2, 2))));
            }
            "many.example" => {
                for n in 0..20 {
                    answer.add_answer(record(RData::A(A::new(192, 0, 2, n))));
                }
            }
            "text.example" => {
                for n in 0..8 {
                    answer.add_answer(record(RData::TXT(TXT::new(vec![format!("{n}\"\\\u{1}").repeat(50)]))));
                }
            }
            "fails.example" => answer.metadata.response_code = ResponseCode::ServFail,
            "refuses.example" => answer.metadata.response_code = ResponseCode::Refused,
            "empty.example" => {}
            _ => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer
    }

    /// Answers over UDP and TCP on the same port.
    async fn serve() -> SocketAddr {
        // A port that is free for the one may be taken for the other.
        let (socket, listener, address) = loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap();
            if let Ok(listener) = TcpListener::bind(address).await {
                break (socket, listener, address);
            }
        };
        tokio::spawn(async move {
            let mut buffer = [0; 1_024];
            while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..size]).unwrap();
                let mut answer = answer_to(&question);
                match question.queries[0].name().to_ascii().trim_end_matches('.') {
                    "silent.example" => continue,
                    "garbage.example" => {
                        socket.send_to(&[buffer[0], buffer[1], 0xff, 0xff, 0xff], from).await.unwrap();
                        continue;
                    }
                    "many.example" => {
                        answer.metadata.truncation = true;
                        answer.answers.clear();
                    }
                    "text.example" => {}
                    _ => {
                        // A guess with another id comes first and is not believed.
                        let mut forged = answer.clone();
                        forged.metadata.id = answer.metadata.id.wrapping_add(1);
                        forged.metadata.response_code = ResponseCode::ServFail;
                        socket.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
                    }
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut question).await.unwrap();
                let answer = answer_to(&Message::from_vec(&question).unwrap()).to_vec().unwrap();
                stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        address
    }

    async fn look_up(server: SocketAddr, name: &str, record: &str) -> Measured {
        let json = format!(
            r#"{{"name":"d","kind":"dns","target":"{name}","record":"{record}","server":"{server}","interval_s":10,"timeout_ms":300}}"#
        );
        measure(&json).await
    }

    #[tokio::test]
    async fn answers_and_refusals_are_told_apart() {
        let server = serve().await;
        for (name, record, outcome, reason) in [
            ("www.example", "A", Outcome::Ok, None),
            ("www.example", "AAAA", Outcome::Fail, Some(Reason::NameNotFound)),
            ("none.example", "A", Outcome::Fail, Some(Reason::NameNotFound)),
            ("localhost", "A", Outcome::Fail, Some(Reason::NameNotFound)),
            ("empty.example", "A", Outcome::Fail, Some(Reason::NameNotFound)),
            ("fails.example", "A", Outcome::Fail, Some(Reason::NameServerFailed)),
            ("refuses.example", "A", Outcome::Fail, Some(Reason::NameServerFailed)),
            ("garbage.example", "A", Outcome::Fail, Some(Reason::BadAnswer)),
            ("silent.example", "A", Outcome::Fail, Some(Reason::Timeout)),
        ] {
            let result = look_up(server, name, record).await;
            assert_eq!((result.outcome, result.reason), (outcome, reason), "{name} {record}");
        }
        let result = look_up(server, "www.example", "A").await;
        assert_eq!(result.detail["answers"], serde_json::json!(["192.0.2.1", "192.0.2.2"]));
        assert_eq!(result.detail["server"], server.to_string());
        assert_eq!(look_up(server, "none.example", "A").await.detail["rcode"], "Non-Existent Domain");
    }

    #[tokio::test]
    async fn a_cut_answer_is_asked_for_over_tcp_and_shown_in_part() {
        let result = look_up(serve().await, "many.example", "A").await;
        assert_eq!(result.outcome, Outcome::Ok);
        assert_eq!(result.detail["answers"].as_array().unwrap().len(), 8);
    }

    #[tokio::test]
    async fn hostile_texts_stay_within_the_detail() {
        let result = look_up(serve().await, "text.example", "TXT").await;
        assert_eq!(result.outcome, Outcome::Ok);
        assert!(serde_json::to_vec(&result.detail).unwrap().len() <= DETAIL_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_refused() {
        let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let result = look_up(free, "www.example", "A").await;
        assert_eq!((result.outcome, result.reason), (Outcome::Fail, Some(Reason::Refused)));
    }
}
