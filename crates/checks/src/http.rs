//! `http`: one GET or HEAD over HTTP/1.1, with its phases and, over TLS, when the certificate expires.
//!
//! Redirects are answers, not orders: they are not followed. The latency is the time until the answer has been read.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bulkhead_bus::payload::Reason;
use bulkhead_runtime::{Chain, now_ms};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::fields::{Fields, Origin, shown};
use crate::kind::{CheckType, Text};
use crate::target::{Scheme, Url};
use crate::tls::{Trust, check_trust};
use crate::{Detail, Failure, Run, Secrets, note_phase, tcp, tls};

/// What is read of a body; the rest stays with the server.
const BODY_BYTES_MOST: usize = 64 * 1024;
/// The head of an answer, and what is read ahead of its body.
const HEAD_BYTES_MOST: usize = 64 * 1024;
/// All that is read of an answer, interim ones and the frames of chunks included: whoever sends without end is not listened to.
const ANSWER_BYTES_MOST: u64 = 1024 * 1024;
const HEADERS_MOST: usize = 32;
const STATUS: std::ops::RangeInclusive<u64> = 100..=599;
const WARN_DAYS: std::ops::RangeInclusive<u64> = 0..=3_650;
/// What the check says itself, or what would change where the message ends.
const OWN_HEADERS: [&str; 6] = ["host", "connection", "content-length", "transfer-encoding", "upgrade", "te"];
const AGENT: &str = concat!("bulkhead-poller/", env!("CARGO_PKG_VERSION"));
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Which answers are good.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ExpectedStatus {
    /// 200 to 399.
    AnySuccess,
    OneOf(BTreeSet<u16>),
}

impl ExpectedStatus {
    fn includes(&self, status: u16) -> bool {
        match self {
            Self::AnySuccess => (200..400).contains(&status),
            Self::OneOf(expected) => expected.contains(&status),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSpec {
    url: Url,
    method: Method,
    headers: Vec<(HeaderName, Text)>,
    expect_status: ExpectedStatus,
    tls_warn_days: Option<u16>,
    trust: Trust,
}

fn read_status(fields: &mut Fields<'_>) -> ExpectedStatus {
    let Some(value) = fields.take("expect_status") else { return ExpectedStatus::AnySuccess };
    let listed: Vec<&Value> = match value {
        Value::Array(listed) => listed.iter().collect(),
        Value::Number(_) | Value::String(_) | Value::Object(_) | Value::Bool(_) | Value::Null => vec![value],
    };
    if listed.is_empty() {
        fields.say("expect_status", Some(value), "allows no answer: list at least one status, or leave it out");
    }
    let mut expected = BTreeSet::new();
    for value in listed {
        let status =
            value.as_u64().filter(|status| STATUS.contains(status)).and_then(|status| u16::try_from(status).ok());
        match status {
            Some(status) => drop(expected.insert(status)),
            None => {
                let rule = format!("is not an HTTP status: write {} to {}", STATUS.start(), STATUS.end());
                fields.say("expect_status", Some(value), rule);
            }
        }
    }
    ExpectedStatus::OneOf(expected)
}

fn read_method(fields: &mut Fields<'_>) -> Method {
    match fields.text("method") {
        None | Some("GET") => Method::GET,
        Some("HEAD") => Method::HEAD,
        Some(other) => {
            fields.say("method", Some(&other.into()), "is not one of GET, HEAD");
            Method::GET
        }
    }
}

/// Why a header cannot be sent.
fn read_header(name: &str, value: &Value) -> Result<(HeaderName, Text), String> {
    let parsed: HeaderName =
        name.parse().map_err(|_| "is not the name of a header: use letters, digits and '-'".to_owned())?;
    if OWN_HEADERS.contains(&parsed.as_str()) {
        return Err("is set by the check itself: leave it out".to_owned());
    }
    let text = Text::read(value)?;
    match &text {
        Text::Plain(plain) if HeaderValue::from_str(plain).is_err() => {
            Err(format!("{} has characters that no header may have, such as line ends", shown(value)))
        }
        Text::Plain(_) | Text::Secret(_) => Ok((parsed, text)),
    }
}

fn read_headers(fields: &mut Fields<'_>) -> Vec<(HeaderName, Text)> {
    let Some(value) = fields.take("headers") else { return Vec::new() };
    let Some(map) = value.as_object().filter(|map| map.len() <= HEADERS_MOST) else {
        let rule = format!(
            "is not a table of at most {HEADERS_MOST} headers: write for example {{\"accept\": \"text/html\"}}"
        );
        fields.say("headers", Some(value), rule);
        return Vec::new();
    };
    let mut headers = Vec::with_capacity(map.len());
    for (name, value) in map {
        match read_header(name, value) {
            Ok(header) => headers.push(header),
            Err(rule) => fields.say("headers", Some(&name.as_str().into()), rule),
        }
    }
    headers
}

fn read_trust(fields: &mut Fields<'_>) -> Trust {
    match fields.origin {
        // A file of this machine is named by this machine's settings only.
        Origin::Definition | Origin::Wire => Trust::System,
        Origin::Settings => {
            let trust = fields.text("ca_file").map_or(Trust::System, |path| Trust::File(path.into()));
            fields.keep(check_trust(&trust).map_err(|error| Chain(&error).to_string()));
            trust
        }
    }
}

impl CheckType for HttpSpec {
    fn read(target: Option<&str>, fields: &mut Fields<'_>) -> Option<Self> {
        let url = target.and_then(|target| fields.keep(target.parse()));
        let expect_status = read_status(fields);
        let warn_days = fields.number("tls_warn_days", &WARN_DAYS);
        let (method, headers, trust) = (read_method(fields), read_headers(fields), read_trust(fields));
        let tls_warn_days = warn_days.and_then(|days| u16::try_from(days).ok());
        Some(Self { url: url?, method, headers, expect_status, tls_warn_days, trust })
    }

    async fn probe(&self, run: &Run<'_>, detail: &mut Detail) -> Result<Duration, Failure> {
        let request = self.request(run.secrets)?;
        let began = Instant::now();
        let endpoint = &self.url.endpoint;
        let (stream, connected) = tcp::connect(endpoint, run.prober, detail).await?;
        detail.insert("connect_us".to_owned(), crate::micros(connected).into());
        let (status, not_after_ms) = match self.url.scheme {
            Scheme::Http => (ask(request, stream, detail).await?, None),
            Scheme::Https => {
                let shaking = Instant::now();
                let shaken = tls::shake_hands(&run.prober.trust, &self.trust, (&endpoint.host, stream), detail).await;
                let (stream, not_after_ms) = shaken?;
                note_phase(detail, "tls_us", shaking);
                (ask(request, stream, detail).await?, not_after_ms)
            }
        };
        self.judge(status, not_after_ms, began.elapsed())
    }

    fn secrets(&self) -> Vec<&str> {
        self.headers.iter().filter_map(|(_, text)| text.secret()).collect()
    }
}

impl HttpSpec {
    /// # Errors
    /// When a secret is missing, or is nothing that a header may hold.
    fn request(&self, secrets: &Secrets) -> Result<Request<Empty<Bytes>>, Failure> {
        let request = Request::builder().method(self.method.clone()).uri(self.url.path.as_str());
        let mut request = request.header(HOST, self.url.authority.as_str()).header(CONNECTION, "close");
        if !self.headers.iter().any(|(name, _)| name == USER_AGENT) {
            request = request.header(USER_AGENT, AGENT);
        }
        for (name, text) in &self.headers {
            let value = match text {
                Text::Plain(plain) => plain.as_str(),
                Text::Secret(name) => {
                    let secret = secrets.get(name).map(|secret| secret.as_str());
                    secret.ok_or(Failure::of_poller(Reason::SecretMissing))?
                }
            };
            let mut value = HeaderValue::from_str(value).map_err(|_| Failure::of_poller(Reason::SecretMissing))?;
            value.set_sensitive(text.secret().is_some());
            request = request.header(name, value);
        }
        request.body(Empty::new()).map_err(|_| Failure::of_poller(Reason::Internal))
    }

    fn judge(&self, status: u16, not_after_ms: Option<i64>, latency: Duration) -> Result<Duration, Failure> {
        if !self.expect_status.includes(status) {
            return Err(Failure::of_target(Reason::BadStatus).after(latency));
        }
        let expiry = not_after_ms.zip(self.tls_warn_days);
        if expiry.is_some_and(|(not_after_ms, warn_days)| is_expiring(not_after_ms, warn_days, now_ms())) {
            return Err(Failure::of_target(Reason::CertificateExpiring).after(latency));
        }
        Ok(latency)
    }
}

fn failure_of(error: &hyper::Error) -> Failure {
    if error.is_parse() {
        return Failure::of_target(Reason::BadAnswer);
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(socket) = inner.downcast_ref::<std::io::Error>() {
            return Failure::of_socket(socket);
        }
        cause = inner.source();
    }
    Failure::of_target(Reason::Closed)
}

/// Reads at most [`BODY_BYTES_MOST`].
async fn read_body(mut answer: Response<Incoming>) -> Result<usize, Failure> {
    let mut read = 0;
    while read < BODY_BYTES_MOST
        && let Some(frame) = answer.frame().await
    {
        read += frame.map_err(|error| failure_of(&error))?.data_ref().map_or(0, Bytes::len);
    }
    Ok(read)
}

async fn ask<S>(request: Request<Empty<Bytes>>, stream: S, detail: &mut Detail) -> Result<u16, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let began = Instant::now();
    let (reader, writer) = tokio::io::split(stream);
    let bounded = tokio::io::join(reader.take(ANSWER_BYTES_MOST), writer);
    let client = http1::Builder::new().max_buf_size(HEAD_BYTES_MOST).handshake(TokioIo::new(bounded)).await;
    let (mut sender, connection) = client.map_err(|error| failure_of(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| failure_of(&error))?;
        note_phase(detail, "first_byte_us", began);
        let status = answer.status().as_u16();
        detail.insert("http_status".to_owned(), status.into());
        detail.insert("body_bytes".to_owned(), read_body(answer).await?.into());
        Ok(status)
    };
    // Its errors reach the exchange too; after its end the exchange still reads what has come in.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        status = exchange => status,
        never = drive => match never {},
    }
}

/// Whether a certificate expires within `warn_days`.
fn is_expiring(not_after_ms: i64, warn_days: u16, now_ms: i64) -> bool {
    not_after_ms.saturating_sub(now_ms) <= i64::from(warn_days) * DAY_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::measure;
    use bulkhead_bus::payload::{Measured, Outcome};
    use http_body_util::Full;
    use hyper::server::conn::http1 as server;
    use hyper::service::service_fn;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use std::net::SocketAddr;
    use std::sync::Arc;
    use time::OffsetDateTime;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    /// Answers every path `/<status>/<body bytes>`; redirects point to a place that does not answer.
    async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let mut parts = request.uri().path().trim_start_matches('/').split('/');
        let status: u16 = parts.next().unwrap().parse().unwrap_or(200);
        let bytes: usize = parts.next().and_then(|bytes| bytes.parse().ok()).unwrap_or(2);
        let body = Full::new(Bytes::from(vec![b'x'; bytes]));
        Ok(Response::builder().status(status).header("location", "http://127.0.0.1:1/").body(body).unwrap())
    }

    async fn serve(tls: Option<TlsAcceptor>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    // Clients that hang up are part of the tests.
                    let _ = match tls {
                        None => server::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => {
                                let io = TokioIo::new(stream);
                                server::Builder::new().serve_connection(io, service_fn(answer)).await
                            }
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        address
    }

    /// A server with a certificate of an own authority, and that authority's file.
    async fn serve_tls(days_left: i64) -> (SocketAddr, tempfile::NamedTempFile, i64) {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let not_after = OffsetDateTime::now_utc() + time::Duration::days(days_left);
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = not_after - time::Duration::days(365);
        params.not_after = not_after;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let address = serve(Some(TlsAcceptor::from(Arc::new(config)))).await;
        let ca_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca_file.path(), authority.pem()).unwrap();
        (address, ca_file, not_after.unix_timestamp() * 1_000)
    }

    async fn get(url: &str, more: &str) -> Measured {
        let json = format!(r#"{{"name":"w","kind":"http","target":"{url}","interval_s":10,"timeout_ms":2000{more}}}"#);
        measure(&json).await
    }

    fn end(result: &Measured) -> (Outcome, Option<Reason>) {
        (result.outcome, result.reason)
    }

    const FAIL: Outcome = Outcome::Fail;

    #[tokio::test]
    async fn the_status_decides_and_redirects_are_not_followed() {
        let server = serve(None).await;
        for (path, more, expected) in [
            ("200", "", (Outcome::Ok, None)),
            ("204", "", (Outcome::Ok, None)),
            ("301", "", (Outcome::Ok, None)),
            ("301", r#","expect_status":[200]"#, (FAIL, Some(Reason::BadStatus))),
            ("404", "", (FAIL, Some(Reason::BadStatus))),
            ("404", r#","expect_status":[404,200]"#, (Outcome::Ok, None)),
            ("500", "", (FAIL, Some(Reason::BadStatus))),
        ] {
            let result = get(&format!("http://{server}/{path}"), more).await;
            assert_eq!(end(&result), expected, "{path} {more}");
            assert_eq!(result.detail["http_status"], path.parse::<u16>().unwrap());
            assert!(result.latency_us.is_some() && result.detail.contains_key("first_byte_us"));
            assert!(result.detail.contains_key("connect_us") && !result.detail.contains_key("tls_us"));
        }
    }

    #[tokio::test]
    async fn a_large_body_is_read_in_part() {
        let server = serve(None).await;
        let result = get(&format!("http://{server}/200/10000000"), "").await;
        assert_eq!(result.outcome, Outcome::Ok);
        let read = result.detail["body_bytes"].as_u64().unwrap();
        assert!((65_536..1_000_000).contains(&read), "{read}");
    }

    #[tokio::test]
    async fn servers_that_speak_no_http_fail_for_a_reason() {
        for (said, reason) in [
            ("SSH-2.0-x\r\n", Reason::BadAnswer),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", Reason::Closed),
            ("HTTP/1.1 200 OK\r\nConte", Reason::Closed),
            ("", Reason::Closed),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = listener.local_addr().unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1_024]).await;
                let _ = stream.write_all(said.as_bytes()).await;
            });
            let result = get(&format!("http://{server}/"), "").await;
            assert_eq!(end(&result), (FAIL, Some(reason)), "{said:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_a_timeout_with_what_was_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let json = format!(
            r#"{{"name":"w","kind":"http","target":"http://{}/","interval_s":10,"timeout_ms":150}}"#,
            listener.local_addr().unwrap()
        );
        let result = measure(&json).await;
        assert_eq!(end(&result), (FAIL, Some(Reason::Timeout)));
        assert!(result.detail.contains_key("connect_us"));
    }

    #[tokio::test]
    async fn certificates_are_judged_and_their_expiry_is_always_told() {
        for (days_left, is_trusted, warn_days, expected) in [
            (90, true, 14, (Outcome::Ok, None)),
            (5, true, 14, (FAIL, Some(Reason::CertificateExpiring))),
            (5, true, 3, (Outcome::Ok, None)),
            (-1, true, 14, (FAIL, Some(Reason::CertificateInvalid))),
            (90, false, 14, (FAIL, Some(Reason::CertificateInvalid))),
        ] {
            let (server, ca_file, not_after_ms) = serve_tls(days_left).await;
            let (_, stranger, _) = serve_tls(1).await;
            let roots = if is_trusted { ca_file.path() } else { stranger.path() };
            let more = format!(r#","tls_warn_days":{warn_days},"ca_file":"{}""#, roots.display());
            let result = get(&format!("https://{server}/"), &more).await;
            assert_eq!(end(&result), expected, "{days_left} days left, trusted {is_trusted}");
            assert_eq!(result.detail["tls_not_after_ms"], not_after_ms);
            assert_eq!(result.detail.contains_key("tls_us"), expected.1 != Some(Reason::CertificateInvalid));
        }
    }

    #[tokio::test]
    async fn a_certificate_for_another_name_is_invalid() {
        let (server, ca_file, not_after_ms) = serve_tls(90).await;
        let more = format!(r#","ca_file":"{}""#, ca_file.path().display());
        let result = get(&format!("https://localhost:{}/", server.port()), &more).await;
        assert_eq!(end(&result), (FAIL, Some(Reason::CertificateInvalid)));
        assert_eq!(result.detail["tls_not_after_ms"], not_after_ms);
    }

    #[tokio::test]
    async fn a_server_without_tls_fails_the_handshake() {
        let (_, ca_file, _) = serve_tls(90).await;
        let server = serve(None).await;
        let more = format!(r#","ca_file":"{}""#, ca_file.path().display());
        let result = get(&format!("https://{server}/"), &more).await;
        assert_eq!(end(&result), (FAIL, Some(Reason::TlsFailed)));
    }

    #[test]
    fn expiry_counts_in_whole_days_from_now() {
        assert!(is_expiring(14 * DAY_MS, 14, 0));
        assert!(!is_expiring(14 * DAY_MS + 1, 14, 0));
        assert!(is_expiring(i64::MIN, 0, 0) && !is_expiring(i64::MAX, u16::MAX, 0));
    }
}
