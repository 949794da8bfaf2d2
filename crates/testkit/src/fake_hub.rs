//! A listener that poses as a hub's leaf listener with a certificate of the attacker's choice, and records who fell for
//! it: whether TLS was completed, and the CONNECT with the credentials in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nkeys::KeyPair;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::identity::{CertificatePair, provider};
use crate::leaf::CLAIMED_VERSION;
use crate::wire::{Decoder, Dialect, Frame};

/// A visitor that says nothing for so long is let go.
const VISIT_LIMIT: Duration = Duration::from_secs(30);
/// Leaves come back every second; a test needs few visits.
const VISITS_MOST: usize = 1_000;

/// One attempt of somebody to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visit {
    /// The visitor did not accept the certificate; the TLS alert or error.
    RefusedTls(String),
    /// TLS was completed, nothing was said yet.
    Trusted,
    /// The visitor gave away its CONNECT.
    Connected(Value),
}

/// Runs until dropped.
pub struct FakeHub {
    pub addr: SocketAddr,
    visits: watch::Receiver<Vec<Visit>>,
    accepting: JoinHandle<()>,
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl FakeHub {
    /// # Errors
    /// When the files cannot be read or do not belong together, or no port can be had.
    pub async fn start(certificate: &CertificatePair) -> anyhow::Result<Self> {
        let (chain, key) = certificate.read()?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .with_context(|| format!("use {}", certificate.cert_file.display()))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind fake hub")?;
        let addr = listener.local_addr().context("bind fake hub")?;
        let (noting, visits) = watch::channel(Vec::new());
        let accepting = tokio::spawn(receive_visits(listener, TlsAcceptor::from(Arc::new(config)), noting));
        Ok(Self { addr, visits, accepting })
    }

    /// All visits so far, in the order in which TLS ended well or badly.
    #[must_use]
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.borrow().clone()
    }

    /// The first visit that `is_wanted`, whether it was already or comes within `limit`.
    ///
    /// # Errors
    /// When there was none; the error shows those that were.
    pub async fn wait_for_visit(&self, limit: Duration, is_wanted: impl Fn(&Visit) -> bool) -> anyhow::Result<Visit> {
        let mut visits = self.visits.clone();
        let come = visits.wait_for(|visits| visits.iter().any(&is_wanted));
        // A limit or a stopped listener: either way what counts is what came.
        let _ = tokio::time::timeout(limit, come).await;
        let visits = self.visits.borrow();
        let Some(visit) = visits.iter().find(|visit| is_wanted(visit)) else {
            bail!("no such visit at the fake hub within {limit:?}; there were {}: {:?}", visits.len(), visits.last());
        };
        Ok(visit.clone())
    }
}

async fn receive_visits(listener: TcpListener, acceptor: TlsAcceptor, noting: watch::Sender<Vec<Visit>>) {
    let noting = Arc::new(noting);
    let mut visits = JoinSet::new();
    for _ in 0..VISITS_MOST {
        let Ok((tcp, _)) = listener.accept().await else { break };
        let visit = receive_visit(tcp, acceptor.clone(), Arc::clone(&noting));
        visits.spawn(tokio::time::timeout(VISIT_LIMIT, visit));
        while visits.try_join_next().is_some() {}
    }
    visits.join_all().await;
}

async fn receive_visit(tcp: TcpStream, acceptor: TlsAcceptor, noting: Arc<watch::Sender<Vec<Visit>>>) {
    let Ok(hub) = tcp.local_addr() else { return };
    let mut stream = match acceptor.accept(tcp).await {
        Ok(stream) => stream,
        Err(error) => return noting.send_modify(|visits| visits.push(Visit::RefusedTls(error.to_string()))),
    };
    let mut place = 0;
    noting.send_modify(|visits| {
        place = visits.len();
        visits.push(Visit::Trusted);
    });
    if stream.write_all(greeting(hub).as_bytes()).await.is_err() {
        return;
    }
    let mut decoder = Decoder::new(Dialect::Leaf);
    loop {
        let answer: &[u8] = match decoder.next_frame() {
            Ok(Some(Frame::Connect(connect))) => {
                noting.send_modify(|visits| visits[place] = Visit::Connected(connect));
                continue;
            }
            Ok(Some(Frame::Ping)) => b"PONG\r\n",
            Ok(Some(_)) => continue,
            Ok(None) => match stream.read_buf(decoder.buffer()).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            },
            Err(_) => return,
        };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// The INFO of a hub's leaf listener. Without an id and urls a leaf takes it for a client listener and goes.
fn greeting(hub: SocketAddr) -> String {
    let id = KeyPair::new_server().public_key();
    let info = json!({
        "server_id": id, "server_name": "hub", "version": CLAIMED_VERSION, "proto": 1, "client_id": 5,
        "leafnode_urls": [hub.to_string()], "host": hub.ip().to_string(), "port": hub.port(),
        "headers": true, "max_payload": 1_048_576, "nonce": "bm9uY2Vub25jZQ", "auth_required": true,
        "tls_required": true, "tls_verify": true, "jetstream": true,
    });
    format!("INFO {info}\r\n")
}
