//! Questions about the servers themselves: what the system account and JetStream are asked. They only look, but for
//! [`settlement`], [`kick`], [`stream_restore`] and two of [`ClaimsRequest`].

use crate::stream::StreamName;

/// What every hub server is asked at once, in the system account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerQuestion {
    /// Which accounts are loaded, or one account's token as it is in force.
    Accounts,
    /// Who is connected.
    Connections,
    /// Whether it can do its work; the only one that tells of a stream that stopped at a write error.
    Health,
    /// What JetStream holds and may hold, and how its servers stand to each other.
    JetStream,
    /// Which leaves are linked.
    Leaves,
    /// Version, clock, ports, and which configuration is loaded.
    Settings,
}

impl ServerQuestion {
    pub const ALL: [Self; 6] =
        [Self::Accounts, Self::Connections, Self::Health, Self::JetStream, Self::Leaves, Self::Settings];

    #[must_use]
    pub fn subject(self) -> &'static str {
        match self {
            Self::Accounts => "$SYS.REQ.SERVER.PING.ACCOUNTZ",
            Self::Connections => "$SYS.REQ.SERVER.PING.CONNZ",
            Self::Health => "$SYS.REQ.SERVER.PING.HEALTHZ",
            Self::JetStream => "$SYS.REQ.SERVER.PING.JSZ",
            Self::Leaves => "$SYS.REQ.SERVER.PING.LEAFZ",
            Self::Settings => "$SYS.REQ.SERVER.PING.VARZ",
        }
    }
}

/// What the servers' resolvers are told and asked about all accounts. [`ClaimsRequest::Update`] and
/// [`ClaimsRequest::Delete`] change what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimsRequest {
    /// Store this token.
    Update,
    /// Which accounts are stored.
    List,
    /// Delete what this token of the operator names.
    Delete,
}

impl ClaimsRequest {
    pub const ALL: [Self; 3] = [Self::Update, Self::List, Self::Delete];

    #[must_use]
    pub fn subject(self) -> &'static str {
        match self {
            Self::Update => "$SYS.REQ.CLAIMS.UPDATE",
            Self::List => "$SYS.REQ.CLAIMS.LIST",
            Self::Delete => "$SYS.REQ.CLAIMS.DELETE",
        }
    }
}

/// Asks one server, by its id, to close a connection.
#[must_use]
pub fn kick(server_id: &str) -> String {
    format!("$SYS.REQ.SERVER.{server_id}.KICK")
}

/// Asks one server, by its id, who it is: only that server answers there.
#[must_use]
pub fn server_identity(server_id: &str) -> String {
    format!("$SYS.REQ.SERVER.{server_id}.IDZ")
}

/// Has one server, by its id, read its configuration and its certificates again.
#[must_use]
pub fn server_reload(server_id: &str) -> String {
    format!("$SYS.REQ.SERVER.{server_id}.RELOAD")
}

/// Asks one server, by its id, which leaf links it has.
#[must_use]
pub fn server_leaves(server_id: &str) -> String {
    format!("$SYS.REQ.SERVER.{server_id}.LEAFZ")
}

/// Where a site's machine hears what its own leaf answers.
pub const KEEPER_INBOX: &str = "_INBOX_keeper";

/// Where servers say that somebody has come, of every account.
pub const CONNECTED: &str = "$SYS.ACCOUNT.*.CONNECT";

/// Asks one server, by its id, who is connected to it.
#[must_use]
pub fn server_connections(server_id: &str) -> String {
    format!("$SYS.REQ.SERVER.{server_id}.CONNZ")
}

/// Asks the servers' resolver for an account's token as it is stored.
#[must_use]
pub fn stored_account(account: &str) -> String {
    format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP")
}

/// Asks JetStream for a stream's configuration and state.
#[must_use]
pub fn stream_info(stream: StreamName) -> String {
    format!("$JS.API.STREAM.INFO.{}", stream.as_str())
}

/// Asks JetStream for the configuration and state of a stream's consumer.
#[must_use]
pub fn consumer_info(stream: StreamName) -> String {
    format!("$JS.API.CONSUMER.INFO.{}.{}", stream.as_str(), stream.consumer().name)
}

/// Asks JetStream for one message by its place in a stream.
#[must_use]
pub fn stored_message(stream: StreamName) -> String {
    format!("$JS.API.STREAM.MSG.GET.{}", stream.as_str())
}

/// Asks JetStream for everything in a stream, its consumers' places included.
#[must_use]
pub fn stream_snapshot(stream: StreamName) -> String {
    format!("$JS.API.STREAM.SNAPSHOT.{}", stream.as_str())
}

/// Asks JetStream to make a stream from a snapshot.
#[must_use]
pub fn stream_restore(stream: StreamName) -> String {
    format!("$JS.API.STREAM.RESTORE.{}", stream.as_str())
}

/// Where a consumer's messages are settled; the server acts on the place in the stream and on nothing else of it.
#[must_use]
pub fn settlement(stream: StreamName, sequence: u64) -> String {
    format!("$JS.ACK.{}.{}.1.{sequence}.1.0.0", stream.as_str(), stream.consumer().name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EdgeRole, Role, edge_permissions, role_permissions};

    #[test]
    fn whoever_asks_may_ask() {
        let system = role_permissions(Role::SystemOperator).publish;
        for question in ServerQuestion::ALL {
            assert!(system.contains(&question.subject().to_owned()), "{question:?}");
        }
        for request in ClaimsRequest::ALL {
            assert!(system.contains(&request.subject().to_owned()), "{request:?}");
        }
        let watch = role_permissions(Role::GateWatch).publish;
        let connections = ServerQuestion::Connections.subject().to_owned();
        let expected = [server_identity("*"), server_connections("*"), connections, kick("*")];
        assert_eq!(watch, expected, "the gatekeeper does nothing else in SYS");
        assert!(system.contains(&stored_account("*")) && system.contains(&kick("*")));
        let provisioner = role_permissions(Role::Provisioner).publish;
        for stream in StreamName::HUB {
            assert!(provisioner.contains(&stream_info(stream)) && provisioner.contains(&consumer_info(stream)));
        }
        let forwarder = edge_permissions(&"oslo".parse().unwrap(), &EdgeRole::Forwarder).publish;
        let edge = StreamName::ResultsEdge;
        assert!(forwarder.contains(&stream_info(edge)) && forwarder.contains(&consumer_info(edge)));
        assert!(forwarder.contains(&stored_message(edge)));
        let may_settle = forwarder.iter().filter_map(|right| right.strip_suffix('>'));
        assert!(may_settle.into_iter().any(|prefix| settlement(edge, 7).starts_with(prefix)));
    }
}
