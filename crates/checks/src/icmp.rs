//! `icmp`: one echo request. Datagram sockets where the system allows them, raw ones where it does not.
//!
//! One socket per address family serves all checks. Where neither kind is permitted, that is said once and the checks
//! end `error`; everything else goes on.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bulkhead_bus::payload::Reason;
use bulkhead_runtime::Chain;
use surge_ping::{Client, Config, ICMP, IcmpPacket, PingIdentifier, PingSequence, SurgeError};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::fields::Fields;
use crate::kind::CheckType;
use crate::target::Host;
use crate::{Detail, Failure, Run};

/// The check's own timeout comes first; this one only ends a ping that nobody waits for.
const PING_LIMIT: Duration = Duration::from_secs(86_400);
/// Pings sent at once: a socket of usual size (212,992 bytes) holds 256 small packets, and a raw one gets two a ping, so
/// that a larger burst would lose replies and blame their targets (measured).
const BURST_MOST: usize = 64;
/// After so long whoever reads the socket has had a turn, and the next pings may go out.
const BURST_PAUSE: Duration = Duration::from_millis(20);
const PAYLOAD: [u8; 24] = *b"bulkhead-poller-icmp-v01";
/// Echo reply (RFC 792).
const REPLY_V4: u8 = 0;
/// The same in RFC 4443.
const REPLY_V6: u8 = 129;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcmpSpec {
    target: Host,
}

/// One per address family, where it is permitted.
struct Sockets {
    v4: Option<Client>,
    v6: Option<Client>,
}

/// The sockets, once they were needed, and a number for each ping.
pub(crate) struct Pings {
    sockets: OnceLock<Sockets>,
    identifier: PingIdentifier,
    next: AtomicU16,
    burst: Semaphore,
}

fn open_client(kind: ICMP, what: &'static str) -> Option<Client> {
    match Client::new(&Config::builder().kind(kind).build()) {
        Ok(client) => Some(client),
        Err(error) => {
            warn!(error = %Chain(&error), "{what} is not permitted here: such checks end with an error");
            None
        }
    }
}

impl Pings {
    pub(crate) fn new() -> Self {
        // Only raw sockets need it: they see the replies to every process of the machine.
        let identifier = PingIdentifier(u16::try_from(std::process::id() & 0xffff).unwrap_or(0));
        Self { sockets: OnceLock::new(), identifier, next: AtomicU16::new(0), burst: Semaphore::new(BURST_MOST) }
    }

    fn sockets(&self) -> &Sockets {
        self.sockets.get_or_init(|| Sockets { v4: open_client(ICMP::V4, "ICMP"), v6: open_client(ICMP::V6, "ICMPv6") })
    }

    pub(crate) fn is_able(&self) -> bool {
        self.sockets().v4.is_some()
    }
}

fn is_echo_reply(packet: &IcmpPacket) -> bool {
    match packet {
        IcmpPacket::V4(packet) => packet.get_icmp_type().0 == REPLY_V4,
        IcmpPacket::V6(packet) => packet.get_icmpv6_type().0 == REPLY_V6,
    }
}

fn failure_of(error: &SurgeError) -> Failure {
    match error {
        SurgeError::IOError(error) => Failure::of_socket(error),
        SurgeError::Timeout { .. } => Failure::of_target(Reason::Timeout),
        SurgeError::IncorrectBufferSize
        | SurgeError::MalformedPacket(_)
        | SurgeError::EchoRequestPacket
        | SurgeError::NetworkError
        | SurgeError::IdenticalRequests { .. }
        | SurgeError::ClientDestroyed => Failure::of_poller(Reason::Internal),
    }
}

impl CheckType for IcmpSpec {
    fn read(target: Option<&str>, fields: &mut Fields<'_>) -> Option<Self> {
        let target = fields.keep(target?.parse())?;
        Some(Self { target })
    }

    async fn probe(&self, run: &Run<'_>, detail: &mut Detail) -> Result<Duration, Failure> {
        let addresses = run.prober.addresses(&self.target, detail).await?;
        ping_one(&run.prober.pings, &addresses).await
    }
}

/// Pings the first address whose family is permitted.
async fn ping_one(pings: &Pings, addresses: &[IpAddr]) -> Result<Duration, Failure> {
    let sockets = pings.sockets();
    let client_of = |address: &IpAddr| if address.is_ipv4() { sockets.v4.as_ref() } else { sockets.v6.as_ref() };
    let usable = addresses.iter().find_map(|address| client_of(address).map(|client| (*address, client)));
    let (address, client) = usable.ok_or(Failure::of_poller(Reason::NotPermitted))?;
    let number = pings.next.fetch_add(1, Ordering::Relaxed);
    let mut pinger = client.pinger(address, pings.identifier).await;
    let turn = pings.burst.acquire().await.map_err(|_| Failure::of_poller(Reason::Internal))?;
    let started = Instant::now();
    let mut ping = std::pin::pin!(pinger.timeout(PING_LIMIT).ping(PingSequence(number), &PAYLOAD));
    let early = tokio::time::timeout(BURST_PAUSE, &mut ping).await;
    drop(turn);
    let answered = match early {
        Ok(answered) => answered,
        Err(_) => ping.await,
    };
    match answered {
        // surge-ping starts its clock after sending: the answer of a near target can be there before that.
        Ok((packet, latency)) if is_echo_reply(&packet) => {
            Ok(if latency.is_zero() { started.elapsed() } else { latency })
        }
        // A router answered in the target's place.
        Ok(_) => Err(Failure::of_target(Reason::Unreachable)),
        Err(error) => Err(failure_of(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{check_of, measure};
    use crate::{Prober, Rules, Secrets};
    use bulkhead_bus::payload::Outcome;

    fn icmp(target: &str) -> String {
        format!(r#"{{"name":"p","kind":"icmp","target":"{target}","interval_s":10,"timeout_ms":2000}}"#)
    }

    #[tokio::test]
    async fn loopback_answers_or_the_system_forbids_it() {
        let is_permitted = Pings::new().is_able();
        let result = measure(&icmp("127.0.0.1")).await;
        let expected = if is_permitted { (Outcome::Ok, None) } else { (Outcome::Error, Some(Reason::NotPermitted)) };
        assert_eq!((result.outcome, result.reason), expected);
        assert_eq!(result.latency_us.is_some(), is_permitted);
    }

    #[tokio::test]
    async fn a_burst_of_pings_loses_none() {
        // Long enough for a machine that has much else to do: what is lost never comes.
        let patient = icmp("127.0.0.1").replace("\"interval_s\":10", "\"interval_s\":60").replace("2000", "30000");
        let check = check_of(&patient);
        let (prober, secrets) = (Prober::open(Rules::default()), Secrets::new());
        let all = futures_util::future::join_all((0..1_000).map(|_| prober.measure(&check, 0, &secrets))).await;
        let is_permitted = prober.pings.is_able();
        let expected = if is_permitted { Outcome::Ok } else { Outcome::Error };
        let unexpected = all.iter().filter(|result| result.outcome != expected).count();
        assert_eq!(unexpected, 0, "of {} pings", all.len());
    }

    #[tokio::test]
    async fn without_a_socket_the_poller_is_to_blame_not_the_target() {
        let pings = Pings::new();
        assert!(pings.sockets.set(Sockets { v4: None, v6: None }).is_ok());
        for target in ["127.0.0.1", "::1"] {
            let failure = ping_one(&pings, &[target.parse().unwrap()]).await.unwrap_err();
            assert_eq!(failure, Failure::of_poller(Reason::NotPermitted));
        }
    }
}
