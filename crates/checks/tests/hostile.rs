//! Targets that want to hurt whoever checks them: each check ends by its timeout, says what it saw, and takes no more of a
//! target than it needs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::SocketAddr;
use std::time::Duration;

use bulkhead_bus::payload::{Measured, Outcome, Reason};
use bulkhead_checks::{Prober, Rules, Secrets, read_settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

/// Far beyond every timeout here.
const LIMIT: Duration = Duration::from_secs(30);
/// Socket buffers of this machine hold a few of them; what a check reads of a target is far less.
const TAKEN_MOST: usize = 24 * 1024 * 1024;

async fn measure(kind: &str, target: &str, more: &str) -> Measured {
    let json = format!(r#"{{"name":"h","kind":"{kind}","target":"{target}","interval_s":10,"timeout_ms":700{more}}}"#);
    let mut problems = Vec::new();
    let checks = read_settings(&[serde_json::from_str(&json).unwrap()], &mut problems);
    assert_eq!(problems, Vec::<String>::new());
    let (prober, secrets) = (Prober::open(Rules::default()), Secrets::new());
    tokio::time::timeout(LIMIT, prober.measure(&checks[0], 0, &secrets)).await.expect("a check that ends")
}

fn end(result: &Measured) -> (Outcome, Option<Reason>) {
    (result.outcome, result.reason)
}

/// Says `head`, then `again` for as long as anybody takes it, all at once or a piece each 20 ms. How many bytes were taken.
async fn serve(head: &'static [u8], again: &'static [u8], is_slow: bool) -> (SocketAddr, oneshot::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, taken) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4_096]).await;
        let _ = told.send(pour(&mut stream, head, again, is_slow).await);
    });
    (address, taken)
}

async fn pour(stream: &mut TcpStream, head: &[u8], again: &[u8], is_slow: bool) -> usize {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut taken = 0;
    let mut next = head;
    while stream.write_all(next).await.is_ok() && taken < 10 * TAKEN_MOST {
        taken += next.len();
        next = again;
        if is_slow {
            ticks.tick().await;
        }
    }
    taken
}

#[tokio::test]
async fn an_answer_that_never_ends_ends_at_the_timeout() {
    for (head, again) in [
        (&b"HTTP/1.1 200 OK\r\n"[..], &b"x"[..]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"", b"H"),
    ] {
        let (server, _) = serve(head, again, true).await;
        let result = measure("http", &format!("http://{server}/"), "").await;
        assert_eq!(result.outcome, Outcome::Fail, "{result:?}");
        assert!(matches!(result.reason, Some(Reason::Timeout | Reason::BadAnswer)), "{result:?}");
    }
}

#[tokio::test]
async fn of_a_body_without_end_a_little_is_read() {
    const PIECE: &[u8] = &[b'x'; 65_536];
    let (server, taken) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", PIECE, false).await;
    let result = measure("http", &format!("http://{server}/"), "").await;
    assert_eq!(end(&result), (Outcome::Ok, None));
    assert!(result.detail["body_bytes"].as_u64().unwrap() < 1_000_000);
    assert!(taken.await.unwrap() < TAKEN_MOST);
}

#[tokio::test]
async fn of_headers_without_end_a_little_is_read() {
    const LINES: &[u8] =
        b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
    const ONE: &[u8] = &[b'a'; 65_536];
    for (head, again) in [(&b"HTTP/1.1 200 OK\r\n"[..], LINES), (b"HTTP/1.1 200 OK\r\nX-A: ", ONE)] {
        let (server, taken) = serve(head, again, false).await;
        let result = measure("http", &format!("http://{server}/"), "").await;
        assert_eq!(end(&result), (Outcome::Fail, Some(Reason::BadAnswer)));
        assert!(taken.await.unwrap() < TAKEN_MOST);
    }
}

/// Each of them is a whole answer to the reader, which asks for the next before anybody looks at the clock.
#[tokio::test]
async fn of_interim_answers_without_end_a_little_is_read() {
    static MANY: [u8; 100_000] = {
        let (one, mut all, mut at) = (b"HTTP/1.1 100 Continue\r\n\r\n", [0; 100_000], 0);
        while at < all.len() {
            all[at] = one[at % one.len()];
            at += 1;
        }
        all
    };
    let (server, taken) = serve(&MANY, &MANY, false).await;
    let result = measure("http", &format!("http://{server}/"), "").await;
    assert_eq!(end(&result), (Outcome::Fail, Some(Reason::Closed)), "{result:?}");
    assert!(taken.await.unwrap() < TAKEN_MOST);
}

#[tokio::test]
async fn a_packed_body_stays_packed() {
    // The head of a gzip stream; nothing here would unpack what follows.
    const PACKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03";
    let (server, _) = serve(PACKED, b"", true).await;
    let result = measure("http", &format!("http://{server}/"), "").await;
    assert_eq!(end(&result), (Outcome::Ok, None));
    assert_eq!(result.detail["body_bytes"], 10);
}

#[tokio::test]
async fn a_redirect_to_metadata_is_an_answer_and_no_order() {
    const AWAY: &[u8] =
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/\r\nContent-Length: 0\r\n\r\n";
    let (server, _) = serve(AWAY, b"", true).await;
    let result = measure("http", &format!("http://{server}/"), "").await;
    assert_eq!(end(&result), (Outcome::Ok, None));
    assert_eq!(result.detail["http_status"], 302);
    assert_eq!(result.detail.get("denied"), None);
}

#[tokio::test]
async fn rubbish_in_the_place_of_tls_fails_the_handshake() {
    const RECORD: &[u8] = b"\x16\x03\x03\xff\xff\x02\0\xff\xff";
    const ALERT: &[u8] = b"\x15\x03\x03\0\x02\x02\x28";
    for said in [RECORD, ALERT, b"HTTP/1.1 400 no\r\n\r\n", &[0; 512]] {
        let (server, taken) = serve(said, said, false).await;
        let result = measure("http", &format!("https://{server}/"), "").await;
        assert_eq!(result.outcome, Outcome::Fail, "{result:?}");
        assert!(taken.await.unwrap() < TAKEN_MOST);
    }
    // One that says nothing at all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let result = measure("http", &format!("https://{}/", listener.local_addr().unwrap()), "").await;
    assert_eq!(end(&result), (Outcome::Fail, Some(Reason::Timeout)));
}

/// Answers each question with what `answer` makes of it, as often as it says.
async fn name_server(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static, times: usize) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut question = [0; 512];
        while let Ok((size, from)) = socket.recv_from(&mut question).await {
            for _ in 0..times {
                if socket.send_to(&answer(&question[..size]), from).await.is_err() {
                    break;
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn answers_of_name_servers_that_lead_in_circles_end() {
    // An answer whose name points to itself, and one that points forward to itself by another.
    let circle = |pointers: &'static [u8]| {
        move |question: &[u8]| {
            let mut answer = question.to_vec();
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
            let at = u16::try_from(answer.len()).unwrap() | 0xc000;
            for pointer in pointers {
                answer.extend((at + u16::from(*pointer)).to_be_bytes());
            }
            answer.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
            answer
        }
    };
    for pointers in [&[0][..], &[2, 0]] {
        let server = name_server(circle(pointers), 1).await;
        let result = measure("dns", "www.example", &format!(r#","server":"{server}""#)).await;
        assert_eq!(end(&result), (Outcome::Fail, Some(Reason::BadAnswer)));
    }
    // Thousands of answers to other questions are not waited for beyond the timeout.
    let other = |question: &[u8]| {
        let mut answer = question.to_vec();
        (answer[0], answer[2]) = (!answer[0], 0x81);
        answer
    };
    let server = name_server(other, 5_000).await;
    let result = measure("dns", "www.example", &format!(r#","server":"{server}""#)).await;
    assert_eq!(end(&result), (Outcome::Fail, Some(Reason::Timeout)));
}
