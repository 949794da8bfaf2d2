//! The proxy between a real client and a real echo server on loopback.

use bulkhead_runtime::eventually;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

async fn start_echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

async fn start_proxy() -> TcpProxy {
    TcpProxy::start(start_echo().await).await.unwrap()
}

async fn echo(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    let (mut read, mut write) = stream.split();
    let mut answer = vec![0; text.len()];
    let exchange = async { tokio::try_join!(write.write_all(text), read.read_exact(&mut answer)) };
    timeout(LIMIT, exchange).await.expect("the echo comes in time")?;
    Ok(answer)
}

async fn is_refused(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return true };
    echo(&mut stream, b"x").await.is_err()
}

#[tokio::test]
async fn bytes_and_half_closes_pass_a_link_that_is_up() {
    let proxy = start_proxy().await;
    let text: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    assert!(echo(&mut stream, &text).await.unwrap() == text);
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"last");
    let gone = || std::future::ready((proxy.live_connections() == 0).then_some(()).ok_or("still there"));
    eventually("the connection is forgotten", LIMIT, gone).await.unwrap();
}

#[tokio::test]
async fn a_cut_ends_live_connections_and_refuses_new_ones_until_it_is_over() {
    let proxy = start_proxy().await;
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    echo(&mut stream, b"before").await.unwrap();
    proxy.set(Link::Cut);
    let error = timeout(LIMIT, stream.read(&mut [0; 8])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(is_refused(proxy.addr).await);
    proxy.set(Link::Up);
    assert!(!is_refused(proxy.addr).await);
}

#[tokio::test]
async fn no_connection_outlives_a_cut_that_nobody_had_time_to_see() {
    let proxy = start_proxy().await;
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    echo(&mut stream, b"before").await.unwrap();
    proxy.set(Link::Cut);
    proxy.set(Link::Up);
    let error = timeout(LIMIT, stream.read(&mut [0; 8])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_slow_link_delays_both_ways_and_keeps_the_order_when_it_recovers() {
    let proxy = start_proxy().await;
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    echo(&mut stream, b"connected").await.unwrap();
    proxy.set(Link::Slow(Duration::from_millis(120)));
    let start = Instant::now();
    assert_eq!(echo(&mut stream, b"slow").await.unwrap(), b"slow");
    assert!(start.elapsed() >= Duration::from_millis(240), "{:?}", start.elapsed());
    stream.write_all(b"first ").await.unwrap();
    proxy.set(Link::Up);
    assert_eq!(echo(&mut stream, b"second").await.unwrap(), b"first ");
}

#[tokio::test]
async fn a_lossy_link_ends_connections_or_holds_bytes_up_but_never_changes_them() {
    let proxy = start_proxy().await;
    let losses = Losses { seed: 7, stalls_per_mille: 0, stall: Duration::from_millis(60), resets_per_mille: 1_000 };
    proxy.set(Link::Lossy(losses));
    assert!(is_refused(proxy.addr).await);
    proxy.set(Link::Lossy(Losses { resets_per_mille: 0, stalls_per_mille: 1_000, ..losses }));
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    let text: Vec<u8> = (0..20_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let start = Instant::now();
    assert!(echo(&mut stream, &text).await.unwrap() == text);
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_target_that_is_not_there_is_a_refusal() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let proxy = TcpProxy::start(free).await.unwrap();
    assert!(is_refused(proxy.addr).await);
}

#[test]
fn fates_follow_from_the_seed_and_come_as_often_as_asked() {
    let losses = Losses { seed: 42, stalls_per_mille: 50, stall: Duration::ZERO, resets_per_mille: 10 };
    let fates = |losses: Losses| (0..20_000).map(|piece| losses.fate(1, 0, piece)).collect::<Vec<_>>();
    let count = |wanted: Fate| fates(losses).into_iter().filter(|fate| *fate == wanted).count();
    assert_eq!(fates(losses), fates(losses));
    assert_ne!(fates(losses), fates(Losses { seed: 43, ..losses }));
    assert!((800..=1_200).contains(&count(Fate::Stall)), "{}", count(Fate::Stall));
    assert!((140..=260).contains(&count(Fate::Reset)), "{}", count(Fate::Reset));
}
