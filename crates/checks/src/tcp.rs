//! `tcp`: how long the target takes to accept a connection.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::fields::Fields;
use crate::kind::CheckType;
use crate::target::Endpoint;
use crate::{Detail, Failure, Prober, Run};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSpec {
    target: Endpoint,
}

/// Connects to one address after the other; the time that counts is the whole of it without the lookup.
pub(crate) async fn connect(
    target: &Endpoint,
    prober: &Prober,
    detail: &mut Detail,
) -> Result<(TcpStream, Duration), Failure> {
    let sockets = prober.sockets(target, detail).await?;
    let began = Instant::now();
    match TcpStream::connect(sockets.as_slice()).await {
        Ok(stream) => Ok((stream, began.elapsed())),
        Err(error) => Err(Failure::of_socket(&error)),
    }
}

impl CheckType for TcpSpec {
    fn read(target: Option<&str>, fields: &mut Fields<'_>) -> Option<Self> {
        let target = fields.keep(target?.parse())?;
        Some(Self { target })
    }

    async fn probe(&self, run: &Run<'_>, detail: &mut Detail) -> Result<Duration, Failure> {
        connect(&self.target, run.prober, detail).await.map(|(_, latency)| latency)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::measure;
    use bulkhead_bus::payload::{Outcome, Reason};
    use tokio::net::TcpListener;

    fn tcp(target: &str) -> String {
        format!(r#"{{"name":"t","kind":"tcp","target":"{target}","interval_s":10,"timeout_ms":2000}}"#)
    }

    #[tokio::test]
    async fn a_listener_is_ok_and_a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let result = measure(&tcp(&target.to_string())).await;
        assert_eq!((result.outcome, result.reason), (Outcome::Ok, None));
        assert!(result.latency_us.is_some_and(|latency| latency < 2_000_000));
        let by_name = measure(&tcp(&format!("localhost:{}", target.port()))).await;
        assert_eq!(by_name.outcome, Outcome::Ok);
        assert!(by_name.detail.contains_key("resolve_us"));
        drop(listener);
        let result = measure(&tcp(&target.to_string())).await;
        assert_eq!((result.outcome, result.reason), (Outcome::Fail, Some(Reason::Refused)));
        assert_eq!(result.latency_us, None);
    }
}
