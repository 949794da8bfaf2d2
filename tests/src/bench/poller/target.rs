//! What all of them check: a listener that accepts, one that answers HTTP, and whoever answers echo requests in the kernel.
//!
//! It counts what comes, so that the rate of every program is told by the same count.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use bulkhead_testkit::free_ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::ProbeKind;
use crate::bench::identity::beside;

/// Of one address 28,232 ports are free for those who connect, each for a minute after its end.
const ADDRESSES: u8 = 100;
const REQUEST_BYTES_MOST: usize = 8_192;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";

#[derive(Debug, Default)]
struct Seen {
    accepted: AtomicU64,
    answered: AtomicU64,
}

/// Ends when it is dropped or stopped.
pub(super) struct Target {
    tcp_port: u16,
    http_port: u16,
    seen: Arc<Seen>,
    over: watch::Sender<bool>,
    serving: JoinHandle<anyhow::Result<()>>,
}

async fn take_tcp(mut stream: TcpStream) {
    // The one who checks ends the connection.
    let _ = stream.read(&mut [0; 16]).await;
}

async fn answer_http(mut stream: TcpStream, seen: Arc<Seen>) {
    let (mut request, mut part) = (Vec::new(), [0; 1_024]);
    while request.len() < REQUEST_BYTES_MOST {
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend_from_slice(&part[..length]),
        }
        if request.ends_with(b"\r\n\r\n") {
            seen.answered.fetch_add(1, Ordering::Relaxed);
            request.clear();
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}

async fn bind_all(port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for last in 1..=ADDRESSES {
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
        listeners.push(TcpListener::bind(address).await.with_context(|| format!("listen at {address}"))?);
    }
    Ok(listeners)
}

async fn serve(
    (tcp_port, http_port): (u16, u16),
    seen: Arc<Seen>,
    mut over: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut serving = JoinSet::new();
    for listener in bind_all(tcp_port).await? {
        let seen = Arc::clone(&seen);
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(take_tcp(stream));
            }
        });
    }
    for listener in bind_all(http_port).await? {
        let seen = Arc::clone(&seen);
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer_http(stream, Arc::clone(&seen)));
            }
        });
    }
    tokio::select! {
        _ = over.wait_for(|over| *over) => Ok(()),
        Some(_) = serving.join_next() => anyhow::bail!("the target accepts no more"),
    }
}

impl Target {
    /// With threads of its own, in this process, which nobody measures.
    pub(super) fn start() -> anyhow::Result<Self> {
        let [tcp_port, http_port] = free_ports()?;
        let (seen, (over, is_over)) = (Arc::new(Seen::default()), watch::channel(false));
        let serving = tokio::spawn(beside(serve((tcp_port, http_port), Arc::clone(&seen), is_over)));
        Ok(Self { tcp_port, http_port, seen, over, serving })
    }

    /// Whom the check of that number asks, as our poller and blackbox_exporter write it.
    pub(super) fn of_check(&self, kind: ProbeKind, number: usize) -> anyhow::Result<String> {
        let address = address_of_check(kind, number)?;
        Ok(match kind {
            ProbeKind::Tcp => format!("{address}:{}", self.tcp_port),
            ProbeKind::Http => format!("http://{address}:{}/", self.http_port),
            ProbeKind::Icmp => address.to_string(),
        })
    }

    pub(super) fn port(&self, kind: ProbeKind) -> Option<u16> {
        match kind {
            ProbeKind::Tcp => Some(self.tcp_port),
            ProbeKind::Http => Some(self.http_port),
            ProbeKind::Icmp => None,
        }
    }

    /// Checks that have come so far.
    pub(super) fn seen(&self, kind: ProbeKind) -> anyhow::Result<u64> {
        ensure!(!self.serving.is_finished(), "the target has ended");
        match kind {
            ProbeKind::Tcp => Ok(self.seen.accepted.load(Ordering::Relaxed)),
            ProbeKind::Http => Ok(self.seen.answered.load(Ordering::Relaxed)),
            ProbeKind::Icmp => echoes(&std::fs::read_to_string("/proc/net/snmp").context("read the kernel's counts")?),
        }
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        // It may have ended by itself.
        let _ = self.over.send(true);
        self.serving.await.context("the target")?
    }
}

/// Echo requests need an address each: cloudprober tells its targets by where an answer comes from.
pub(super) fn address_of_check(kind: ProbeKind, number: usize) -> anyhow::Result<Ipv4Addr> {
    match kind {
        ProbeKind::Tcp | ProbeKind::Http => {
            Ok(Ipv4Addr::new(127, 0, 0, u8::try_from(number % usize::from(ADDRESSES))? + 1))
        }
        ProbeKind::Icmp => Ok(Ipv4Addr::new(127, 1, u8::try_from(number / 250)?, u8::try_from(number % 250)? + 1)),
    }
}

/// Echo requests that the kernel has got.
fn echoes(snmp: &str) -> anyhow::Result<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Icmp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next().context("names of ICMP counts")?, lines.next().context("ICMP counts")?);
    let found = names.zip(values).find(|(name, _)| *name == "InEchos").context("a count of echo requests")?;
    found.1.parse().context("a count of echo requests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_requests_are_found_by_name() {
        let page = "Ip: A\nIp: 1\nIcmp: InMsgs InEchos OutMsgs\nIcmp: 5 17 9\nIcmpMsg: InType8\nIcmpMsg: 3\n";
        assert_eq!(echoes(page).unwrap(), 17);
        assert!(echoes("Icmp: InMsgs\nIcmp: 5\n").is_err());
    }

    #[test]
    fn echo_requests_of_ten_thousand_checks_go_to_as_many_addresses() {
        let addresses = (0..10_000).map(|number| address_of_check(ProbeKind::Icmp, number).unwrap());
        assert_eq!(addresses.collect::<std::collections::BTreeSet<_>>().len(), 10_000);
    }
}
