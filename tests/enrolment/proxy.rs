//! A site that reaches the platform through an HTTP proxy only: its machine enrols through it, and its leaf links through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use bulkhead_runtime::eventually;
use bulkhead_testkit::LIMIT;
use bulkhead_tests::machine::{Machine, neighbouring_ports};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::device::Ground;
use crate::story::{enroll, wait_for_more};

/// Joins whoever says `CONNECT host:port` with that place, as long as it is open.
struct HttpProxy {
    url: String,
    tunnels: Arc<AtomicUsize>,
    is_open: Arc<AtomicBool>,
}

async fn tunnel(mut client: TcpStream, tunnels: &AtomicUsize) -> anyhow::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 4_096, "a long head");
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let place = head.strip_prefix("CONNECT ").and_then(|rest| rest.split_whitespace().next()).context("CONNECT")?;
    let mut server = TcpStream::connect(place).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    tunnels.fetch_add(1, Ordering::SeqCst);
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

impl HttpProxy {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (tunnels, is_open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let (counted, open) = (Arc::clone(&tunnels), Arc::clone(&is_open));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                if open.load(Ordering::SeqCst) {
                    tokio::spawn(async move { tunnel(client, &counted).await });
                }
            }
        });
        Ok(Self { url, tunnels, is_open })
    }

    fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_site_behind_a_proxy_enrols_and_links_through_it() -> anyhow::Result<()> {
    let ground = Ground::start().await?;
    let witness = ground.deployment.witness().await?;
    let proxy = HttpProxy::start().await?;
    let machine = Machine::new("site")?;
    let folder = machine.bundle.clone();
    let ports = [neighbouring_ports(1)?, neighbouring_ports(1)?].map(|port| port.to_string());
    let operator = ground.operator();
    let add = ["poller", "add", "acme-corp/bergen/p1", "--leaf-port", &ports[0], "--health-port", &ports[1], "--proxy"];
    operator.expect(4, &[&add[..], &["socks5://127.0.0.1:1"]].concat()).await?;
    let (added, _) = operator.expect(0, &[&add[..], &[&proxy.url]].concat()).await?;
    let token = added[0]["token"].as_str().context("a token")?;
    let (code, _, error) = enroll(&machine, &folder, &["--proxy", "no proxy", token]).await?;
    ensure!(code == Some(4), "{code:?} {error}");
    let (code, _, error) = enroll(&machine, &folder, &["--proxy", &proxy.url, token]).await?;
    ensure!(code == Some(0) && proxy.tunnels() == 1, "{code:?} {error}, {} tunnels", proxy.tunnels());

    let settings: toml::Table = toml::from_str(&std::fs::read_to_string(folder.join("pollers/p1/poller.toml"))?)?;
    ensure!(settings["renewal"]["proxy"].as_str() == Some(&proxy.url), "it would renew without it: {settings:?}");

    // The control: while the proxy takes nobody, the leaf does not find another way.
    proxy.is_open.store(false, Ordering::SeqCst);
    let _running = machine.start()?;
    let refused = eventually("the leaf turned away by the proxy", LIMIT, || async {
        let log = std::fs::read_to_string(machine.log(0)).unwrap_or_default();
        if log.contains("proxy") { Ok(()) } else { Err(log) }
    });
    refused.await?;
    ensure!(proxy.tunnels() == 1, "the proxy was closed");
    proxy.is_open.store(true, Ordering::SeqCst);
    wait_for_more(&witness, &machine, "p1").await?;
    ensure!(proxy.tunnels() >= 2, "the leaf found another way");
    ground.deployment.stop().await
}
