//! The way to a server's INFO: TCP, and TLS when the endpoint says so. Every refusal keeps its cause.
//!
//! A test of a refusal must tell "the server refused" from "nothing was there": hence one variant for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::identity::{Endpoint, Handshake};
use crate::wire::{Decoder, Dialect, Frame};

/// From the first packet to the server's answer to CONNECT. Longer than any authorization timeout used here.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("load what to show")]
    Identity(#[source] anyhow::Error),
    #[error("reach {addr}")]
    Unreachable { addr: SocketAddr, source: io::Error },
    /// The server's certificate was not believed: the attacker is misconfigured, the server refused nothing.
    #[error("the client does not accept the server's TLS: {0}")]
    Untrusted(String),
    #[error("the server refuses the TLS handshake: {0}")]
    RefusedTls(String),
    /// The texts of `-ERR`.
    #[error("the server refuses the connection: {0}")]
    Refused(String),
    #[error("the server closed the connection without a word")]
    Closed,
    #[error("what the server says is not the protocol: {0}")]
    Unreadable(String),
    #[error("the server did not answer within {0:?}")]
    Timeout(Duration),
}

/// TCP or TLS on it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection whose INFO has been read.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) decoder: Decoder,
    pub(crate) info: Value,
}

pub(crate) async fn dial(endpoint: &Endpoint, tls: ClientConfig, dialect: Dialect) -> Result<Opened, ConnectError> {
    let opening = open(endpoint, tls, dialect);
    tokio::time::timeout(CONNECT_LIMIT, opening).await.unwrap_or(Err(ConnectError::Timeout(CONNECT_LIMIT)))
}

async fn open(endpoint: &Endpoint, tls: ClientConfig, dialect: Dialect) -> Result<Opened, ConnectError> {
    let addr = endpoint.addr;
    let unreachable = |source| ConnectError::Unreachable { addr, source };
    let mut tcp = TcpStream::connect(addr).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    let mut decoder = Decoder::new(dialect);
    match endpoint.handshake {
        Handshake::First => {
            let mut stream = shake_hands(tcp, endpoint, tls).await?;
            let info = read_info(&mut stream, &mut decoder).await?;
            Ok(Opened { stream: Box::new(stream), decoder, info })
        }
        Handshake::AfterInfo => {
            let info = read_info(&mut tcp, &mut decoder).await?;
            let stream = shake_hands(tcp, endpoint, tls).await?;
            Ok(Opened { stream: Box::new(stream), decoder, info })
        }
        Handshake::Never => {
            let info = read_info(&mut tcp, &mut decoder).await?;
            Ok(Opened { stream: Box::new(tcp), decoder, info })
        }
    }
}

async fn shake_hands(
    tcp: TcpStream,
    endpoint: &Endpoint,
    tls: ClientConfig,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
    let name = ServerName::try_from(endpoint.server_name.clone());
    let name = name.map_err(|error| ConnectError::Identity(anyhow::Error::new(error).context("read server name")))?;
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| broken_off(&error))
}

async fn read_info(stream: &mut (impl AsyncRead + Unpin), decoder: &mut Decoder) -> Result<Value, ConnectError> {
    loop {
        match decoder.next_frame().map_err(|error| ConnectError::Unreadable(error.to_string()))? {
            Some(Frame::Info(info)) => return Ok(info),
            Some(Frame::Error(text)) => return Err(ConnectError::Refused(text)),
            Some(frame) => return Err(ConnectError::Unreadable(format!("{frame:?} before INFO"))),
            None => match stream.read_buf(decoder.buffer()).await {
                Ok(0) => return Err(ConnectError::Closed),
                Ok(_) => {}
                Err(error) => return Err(broken_off(&error)),
            },
        }
    }
}

/// With TLS 1.3 a server refuses the client's certificate after the client's side of the handshake is done, so an alert
/// may come from the handshake or from the first read.
pub(crate) fn broken_off(error: &io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => ConnectError::RefusedTls(format!("{alert:?}")),
        Some(other) => ConnectError::Untrusted(other.to_string()),
        None => ConnectError::Closed,
    }
}
