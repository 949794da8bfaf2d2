//! Addresses of targets, as this machine finds them: hosts file, then the name servers of the system, cached.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bulkhead_bus::payload::Reason;
use bulkhead_runtime::Chain;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use tracing::warn;

use crate::target::{Endpoint, Host};
use crate::{Detail, Failure, Prober, note_phase};

/// The system's resolver, where it has one.
pub(crate) struct Names(Option<TokioResolver>);

fn failure_of(error: &NetError) -> Failure {
    if matches!(error, NetError::Timeout) {
        return Failure::of_target(Reason::Timeout);
    }
    let is_missing = matches!(error, NetError::Dns(DnsError::NoRecordsFound(found))
        if matches!(found.response_code, ResponseCode::NXDomain | ResponseCode::NoError));
    // Everything else is about the servers between us and the answer.
    Failure::of_target(if is_missing { Reason::NameNotFound } else { Reason::NameServerFailed })
}

impl Names {
    /// Without name servers only addresses can be checked, and that is said once.
    pub(crate) fn open() -> Self {
        match TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build) {
            Ok(resolver) => Self(Some(resolver)),
            Err(error) => {
                warn!(error = %Chain(&error), "no system resolver: checks of names end with an error");
                Self(None)
            }
        }
    }

    /// At least one address.
    async fn addresses(&self, host: &Host, detail: &mut Detail) -> Result<Vec<IpAddr>, Failure> {
        let name = match host {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        let resolver = self.0.as_ref().ok_or(Failure::of_poller(Reason::Internal))?;
        let began = Instant::now();
        let found = resolver.lookup_ip(name.as_str()).await.map_err(|error| failure_of(&error));
        note_phase(detail, "resolve_us", began);
        let addresses: Vec<IpAddr> = found?.iter().collect();
        if addresses.is_empty() { Err(Failure::of_target(Reason::NameNotFound)) } else { Ok(addresses) }
    }
}

impl Prober {
    /// At least one address, all of which may be asked.
    pub(crate) async fn addresses(&self, host: &Host, detail: &mut Detail) -> Result<Vec<IpAddr>, Failure> {
        let addresses = self.names.addresses(host, detail).await?;
        self.rules().permit(&addresses, detail)?;
        Ok(addresses)
    }

    pub(crate) async fn sockets(&self, endpoint: &Endpoint, detail: &mut Detail) -> Result<Vec<SocketAddr>, Failure> {
        let addresses = self.addresses(&endpoint.host, detail).await?;
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, endpoint.port)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::net::NoRecords;
    use hickory_resolver::proto::op::Query;

    #[test]
    fn lookups_fail_for_reasons() {
        let none = |code| NetError::Dns(DnsError::NoRecordsFound(NoRecords::new(Query::default(), code)));
        for (error, reason) in [
            (none(ResponseCode::NXDomain), Reason::NameNotFound),
            (none(ResponseCode::NoError), Reason::NameNotFound),
            (none(ResponseCode::ServFail), Reason::NameServerFailed),
            (NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)), Reason::NameServerFailed),
            (NetError::NoConnections, Reason::NameServerFailed),
            (NetError::Timeout, Reason::Timeout),
        ] {
            assert_eq!(failure_of(&error), Failure::of_target(reason), "{error}");
        }
    }

    #[tokio::test]
    async fn addresses_need_no_resolver_and_names_do() {
        let (names, mut detail) = (Names(None), Detail::new());
        assert_eq!(names.addresses(&"::1".parse().unwrap(), &mut detail).await.unwrap().len(), 1);
        let failure = names.addresses(&"localhost".parse().unwrap(), &mut detail).await.unwrap_err();
        assert_eq!(failure, Failure::of_poller(Reason::Internal));
    }
}
