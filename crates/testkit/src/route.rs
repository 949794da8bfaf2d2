//! An attempt to join the hubs as one of them, with a certificate that must not be enough.

use std::net::SocketAddr;

use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::dial::{ConnectError, dial};
use crate::identity::{Endpoint, Handshake, Identity};
use crate::leaf::CLAIMED_VERSION;
use crate::session::Session;
use crate::wire::Dialect;

/// What a route listener made of us. A listener that is not there is an error and no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteOutcome {
    /// The TLS alert.
    RefusedTls(String),
    /// The server's words, or that it had none.
    Refused(String),
    Accepted,
}

/// Tries to become a route of the server at `addr`. The attacker trusts whatever the server shows, so that every refusal
/// is the server's; `identity.ca_file` is not read.
///
/// # Errors
/// When nothing could be tried: no listener, unreadable files, no answer in time.
pub async fn try_route(addr: SocketAddr, identity: &Identity) -> Result<RouteOutcome, ConnectError> {
    match join(addr, identity).await {
        Ok(()) => Ok(RouteOutcome::Accepted),
        Err(ConnectError::RefusedTls(alert)) => Ok(RouteOutcome::RefusedTls(alert)),
        Err(ConnectError::Refused(text)) => Ok(RouteOutcome::Refused(text)),
        Err(ConnectError::Closed) => Ok(RouteOutcome::Refused(ConnectError::Closed.to_string())),
        Err(
            error @ (ConnectError::Identity(_)
            | ConnectError::Unreachable { .. }
            | ConnectError::Untrusted(_)
            | ConnectError::Unreadable(_)
            | ConnectError::Timeout(_)),
        ) => Err(error),
    }
}

async fn join(addr: SocketAddr, identity: &Identity) -> Result<(), ConnectError> {
    let tls = identity.gullible_config().map_err(ConnectError::Identity)?;
    let endpoint = Endpoint { addr, server_name: addr.ip().to_string(), handshake: Handshake::First };
    let opened = dial(&endpoint, tls, Dialect::Route).await?;
    // A foreign cluster name is refused for the name alone: say what the server says.
    let cluster = opened.info.get("cluster").and_then(Value::as_str).unwrap_or_default().to_owned();
    let id = KeyPair::new_server().public_key();
    let said = json!({
        "echo": true, "verbose": false, "pedantic": false, "tls_required": true, "headers": true, "name": id,
        "cluster": cluster, "lnoc": true,
    });
    let connect = identity.sign_connect(said, &opened.info).map_err(ConnectError::Identity)?;
    // Port 1: should the server believe us, it finds nobody to call back.
    let info = json!({
        "server_id": id, "server_name": id, "version": CLAIMED_VERSION, "proto": 1, "host": "127.0.0.1", "port": 1,
        "headers": true, "max_payload": 1_048_576, "cluster": cluster, "lnoc": true, "tls_required": true,
    });
    Session::start(opened).admit(&format!("CONNECT {connect}\r\nINFO {info}\r\n")).await
}
