//! A TCP link that can be cut, slowed down and made lossy while connections run over it.
//!
//! TCP never loses or changes bytes, so a loss is what TCP makes of it: a pause, or the end of the connection. What
//! happens to which piece of which connection follows from the seed alone.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

/// Losses are decided for pieces of this size, like packets.
const PIECE_BYTES: u64 = 1_400;
const READ_MOST: usize = 64 * 1024;
/// Reads on their way through a slow link; the sender then waits, as with a full window.
const IN_FLIGHT_MOST: usize = 256;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CONNECTIONS_MOST: usize = 1_000;

/// The state of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Up,
    /// Live connections are reset, new ones are reset at once.
    Cut,
    /// Every byte arrives so much later, in each direction.
    Slow(Duration),
    Lossy(Losses),
}

/// Which pieces are lost, and what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Losses {
    pub seed: u64,
    /// Of a thousand pieces, so many come late by `stall`, and everything behind them too.
    pub stalls_per_mille: u16,
    pub stall: Duration,
    /// Of a thousand pieces, so many end their connection.
    pub resets_per_mille: u16,
}

/// What becomes of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    Stall,
    Reset,
}

impl Losses {
    /// `direction` is 0 towards the target and 1 back.
    fn fate(&self, connection: u64, direction: u64, piece: u64) -> Fate {
        let place = mix(self.seed ^ mix(connection ^ mix(direction ^ mix(piece))));
        let drawn = u16::try_from(place % 1_000).unwrap_or(0);
        if drawn < self.resets_per_mille {
            return Fate::Reset;
        }
        if drawn < self.resets_per_mille.saturating_add(self.stalls_per_mille) { Fate::Stall } else { Fate::Pass }
    }

    /// By how much pieces that were read together come late; `None` when one of them ends the connection.
    fn delay_of(&self, mut fates: impl Iterator<Item = Fate>) -> Option<Duration> {
        fates.try_fold(Duration::ZERO, |delay, fate| match fate {
            Fate::Pass => Some(delay),
            Fate::Stall => Some(self.stall),
            Fate::Reset => None,
        })
    }
}

/// The finalizer of SplitMix64: neighbouring numbers become unrelated ones.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The link, and how often it was cut: a connection must not outlive a cut that was short.
#[derive(Debug, Clone, Copy)]
struct State {
    link: Link,
    cuts: u64,
}

/// Listens on a port of its own and passes everything on to the target. Runs until dropped.
pub struct TcpProxy {
    pub addr: SocketAddr,
    state: watch::Sender<State>,
    live: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl TcpProxy {
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind proxy")?;
        let addr = listener.local_addr().context("bind proxy")?;
        let (state, watching) = watch::channel(State { link: Link::Up, cuts: 0 });
        let live = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept_all(listener, target, watching, Arc::clone(&live)));
        Ok(Self { addr, state, live, accepting })
    }

    /// From now on, for live and for new connections. A connection that lives during a cut ends even if the link is up
    /// again before it noticed.
    pub fn set(&self, link: Link) {
        self.state.send_modify(|state| {
            state.link = link;
            state.cuts += u64::from(link == Link::Cut);
        });
    }

    /// Connections that are open through the proxy now.
    #[must_use]
    pub fn live_connections(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

async fn accept_all(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>, live: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        let Ok((near, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let State { link, cuts } = *state.borrow();
        if link == Link::Cut || connections.len() >= CONNECTIONS_MOST {
            reset(&near);
            continue;
        }
        let course = Course { state: state.clone(), connection: number };
        let counted = Counted::one_more(&live);
        connections.spawn(async move {
            connect_ends(near, target, course, cuts).await;
            drop(counted);
        });
    }
}

/// Where bytes run, as far as their fate depends on it.
#[derive(Clone)]
struct Course {
    state: watch::Receiver<State>,
    connection: u64,
}

/// Counts a connection for as long as it is held, however it ends.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_more(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(live))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Closing such a stream is an RST for the other side, as when a box on the way forgets the connection.
fn reset(stream: &TcpStream) {
    // Fails only when the connection is gone already.
    let _ = stream.set_zero_linger();
}

async fn connect_ends(mut near: TcpStream, target: SocketAddr, course: Course, cuts: u64) {
    let Ok(Ok(mut far)) = timeout(CONNECT_LIMIT, TcpStream::connect(target)).await else { return reset(&near) };
    let mut watching = course.state.clone();
    let is_whole = tokio::select! {
        _ = watching.wait_for(|state| state.cuts != cuts) => false,
        ended = carry(&mut near, &mut far, &course) => ended.is_ok(),
    };
    if !is_whole {
        reset(&near);
        reset(&far);
    }
}

async fn carry(near: &mut TcpStream, far: &mut TcpStream, course: &Course) -> io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
    tokio::try_join!(pipe(near_read, far_write, course, 0), pipe(far_read, near_write, course, 1))?;
    Ok(())
}

async fn pipe(read: ReadHalf<'_>, write: WriteHalf<'_>, course: &Course, direction: u64) -> io::Result<()> {
    let (entrance, exit) = mpsc::channel(IN_FLIGHT_MOST);
    tokio::try_join!(take_in(read, entrance, course, direction), give_out(exit, write))?;
    Ok(())
}

/// Bytes on their way, and when they arrive.
type Travelling = (Instant, Bytes);

async fn take_in(
    mut read: ReadHalf<'_>,
    entrance: mpsc::Sender<Travelling>,
    course: &Course,
    direction: u64,
) -> io::Result<()> {
    let mut position = 0;
    let mut last_due = Instant::now();
    loop {
        let mut bytes = BytesMut::with_capacity(READ_MOST);
        if read.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let next = position + bytes.len() as u64;
        let pieces = position.div_ceil(PIECE_BYTES)..next.div_ceil(PIECE_BYTES);
        position = next;
        let link = course.state.borrow().link;
        let delay = match link {
            Link::Up | Link::Cut => Duration::ZERO,
            Link::Slow(delay) => delay,
            Link::Lossy(losses) => {
                let fates = pieces.map(|piece| losses.fate(course.connection, direction, piece));
                losses.delay_of(fates).ok_or(io::ErrorKind::ConnectionReset)?
            }
        };
        // Never before what was sent earlier, also when the link has just become faster.
        last_due = last_due.max(Instant::now() + delay);
        entrance.send((last_due, bytes.freeze())).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
    }
}

async fn give_out(mut exit: mpsc::Receiver<Travelling>, mut write: WriteHalf<'_>) -> io::Result<()> {
    while let Some((due, bytes)) = exit.recv().await {
        // The travelling time is the only thing to wait for.
        let _ = timeout_at(due, std::future::pending::<()>()).await;
        write.write_all(&bytes).await?;
    }
    write.shutdown().await
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
