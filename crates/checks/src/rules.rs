//! What a site's own machine says must not be asked, whoever orders it. Looked at for every address at the moment of use, so
//! that no name can be changed between the judging and the asking.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_bus::payload::Reason;
use ipnet::IpNet;

use crate::Detail;
use crate::failure::Failure;

/// Where machines of the known clouds are told who they are, and with which keys: link-local networks, and what AWS,
/// Alibaba, Azure, Google, Oracle and Scaleway have beside them. Loopback is not among them: what runs beside the poller is
/// often what should be watched.
const USUAL: [&str; 8] = [
    "169.254.0.0/16",
    "fe80::/10",
    "fd00:ec2::/64",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "fd20:ce::254/128",
    "192.0.0.192/32",
    "fd00:42::42/128",
];

/// Targets that are never asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    deny: Vec<IpNet>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { deny: USUAL.iter().map(|network| network.parse().expect("the usual networks are networks")).collect() }
    }
}

/// The IPv4 addresses that an IPv6 address may lead to: mapped, compatible, through NAT64 (RFC 6052, RFC 8215) and 6to4.
fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => Some(v4(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// Where a system really goes that is told to connect to it: nowhere in particular is this machine.
fn reached(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

impl Rules {
    /// Denies exactly these networks.
    #[must_use]
    pub fn denying(deny: Vec<IpNet>) -> Self {
        Self { deny }
    }

    #[must_use]
    pub fn is_denied(&self, address: IpAddr) -> bool {
        let is_listed = |address: IpAddr| {
            self.deny.iter().any(|network| network.contains(&address) || network.contains(&reached(address)))
        };
        let leads_to = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => inner(address),
        };
        is_listed(address) || leads_to.is_some_and(|address| is_listed(address.into()))
    }

    /// # Errors
    /// When one of `addresses` is denied: a name that leads to several is not asked at all then.
    pub(crate) fn permit(&self, addresses: &[IpAddr], detail: &mut Detail) -> Result<(), Failure> {
        match addresses.iter().find(|address| self.is_denied(**address)) {
            None => Ok(()),
            Some(denied) => {
                detail.insert("denied".to_owned(), denied.to_string().into());
                Err(Failure::of_poller(Reason::NotPermitted))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_denied_however_it_is_written_and_loopback_is_not() {
        let rules = Rules::default();
        for denied in [
            "169.254.169.254",
            "169.254.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(rules.is_denied(denied.parse().unwrap()), "{denied}");
        }
        for allowed in ["127.0.0.1", "::1", "10.0.0.1", "192.0.2.1", "2001:db8::1", "::ffff:127.0.0.1", "100.64.0.1"] {
            assert!(!rules.is_denied(allowed.parse().unwrap()), "{allowed}");
        }
        let machine = Rules::denying(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        for denied in ["0.0.0.0", "::", "::ffff:0.0.0.0", "127.9.9.9", "::1"] {
            assert!(machine.is_denied(denied.parse().unwrap()), "{denied}");
        }
        let own = Rules::denying(vec!["10.0.0.0/8".parse().unwrap()]);
        assert!(
            own.is_denied("::ffff:10.1.2.3".parse().unwrap()) && !own.is_denied("169.254.169.254".parse().unwrap())
        );
    }

    #[test]
    fn one_denied_address_denies_the_name() {
        let (rules, mut detail) = (Rules::default(), Detail::new());
        let addresses = ["192.0.2.1", "169.254.169.254"].map(|text| text.parse().unwrap());
        assert_eq!(rules.permit(&addresses, &mut detail), Err(Failure::of_poller(Reason::NotPermitted)));
        assert_eq!(detail["denied"], "169.254.169.254");
        assert_eq!(rules.permit(&addresses[..1], &mut Detail::new()), Ok(()));
    }
}
