//! Reading and verifying certificates, with the verifiers that clients and services use.

use std::path::Path;
use std::sync::Arc;

use bulkhead_runtime::Chain;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, crypto};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::files::read_state;

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Root,
    /// Of a tenant or the platform, under the client root.
    Intermediate,
    Server,
    Route,
    Client,
    /// A leaf's own, which only its site trusts.
    Listener,
}

impl Kind {
    pub(super) fn root_name(self) -> &'static str {
        match self {
            Self::Root | Self::Listener => "itself",
            Self::Intermediate | Self::Client => "client-root",
            Self::Server => "server-root",
            Self::Route => "route-root",
        }
    }
}

/// What matters of a certificate.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    pub(super) public_key: Vec<u8>,
    pub(super) common_name: String,
    dns_names: Vec<String>,
    uris: Vec<String>,
}

impl Certificate {
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
        let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                // Addresses and other kinds of names decide nothing here.
                GeneralName::OtherName(..)
                | GeneralName::RFC822Name(_)
                | GeneralName::X400Address(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EDIPartyName(_)
                | GeneralName::IPAddress(_)
                | GeneralName::RegisteredID(_)
                | GeneralName::Invalid(..) => {}
            }
        }
        Ok(Self {
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            public_key: parsed.public_key().raw.to_vec(),
            common_name: common_name.unwrap_or_default().to_owned(),
            dns_names,
            uris,
        })
    }

    /// Why its names do not say the same; `None` when they do.
    pub(super) fn disagreement(&self) -> Option<String> {
        if !self.dns_names.contains(&self.common_name) {
            return Some(format!("common name {:?}, DNS names {:?}", self.common_name, self.dns_names));
        }
        let said = self.uris.iter().find(|uri| dns_name_of(uri).as_deref() != Some(self.common_name.as_str()));
        said.map(|uri| format!("common name {:?}, URI {uri:?}", self.common_name))
    }
}

/// The DNS name that a certificate with this URI has (design section 5).
fn dns_name_of(uri: &str) -> Option<String> {
    let (domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    let parts: Vec<&str> = path.split('/').collect();
    let name = match parts.as_slice() {
        ["tenant", tenant, "site", site, "leaf" | "poller", name] => format!("{name}.{site}.{tenant}"),
        ["tenant", tenant, "user", user] => format!("{user}.user.{tenant}"),
        ["platform", "user", user] => format!("{user}.user.platform"),
        ["platform", "service", service] => format!("{service}.platform"),
        _ => return None,
    };
    Some(format!("{name}.{domain}"))
}

/// The public half of a private key on disk, as a certificate holds it.
pub(super) fn public_half(key_file: &Path) -> Result<Vec<u8>, String> {
    let text = read_state(key_file).map_err(|error| Chain(&error).to_string())?;
    let key = rcgen::KeyPair::from_pem(&text).map_err(|_| "it is no PEM key".to_owned())?;
    use rcgen::PublicKeyData;
    Ok(key.subject_public_key_info())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::ring::default_provider())
}

fn store_of(trusted: Vec<CertificateDer<'static>>) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for root in trusted {
        roots.add(root).map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(roots))
}

/// Both of them while a root is rotated.
fn trusted_roots(folder: &Path, kind: Kind) -> Result<Vec<CertificateDer<'static>>, String> {
    let path = folder.join(format!("{}.crt", kind.root_name()));
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|error| format!("{}.crt: {}", kind.root_name(), Chain(&error)))
}

/// Whether a chain, the end first, leads to its root in `roots`. In the file of an authority every certificate must.
pub(super) fn verify(
    kind: Kind,
    chain: &[CertificateDer<'static>],
    roots: &Path,
    at: OffsetDateTime,
) -> Result<(), String> {
    let (end, behind) = chain.split_first().ok_or("there is no certificate")?;
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    match kind {
        Kind::Root => chain.iter().try_for_each(|root| signed_by(root, root)),
        Kind::Intermediate => {
            let roots = trusted_roots(roots, kind)?;
            chain.iter().try_for_each(|certificate| signed_by_one(certificate, &roots))
        }
        Kind::Client => {
            let store = store_of(trusted_roots(roots, kind)?)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(store, provider());
            let verifier = verifier.build().map_err(|error| error.to_string())?;
            verifier.verify_client_cert(end, behind, now).map(|_| ()).map_err(|error| error.to_string())
        }
        Kind::Server | Kind::Route => verify_server(end, behind, trusted_roots(roots, kind)?, now),
        Kind::Listener => verify_server(end, behind, vec![end.clone()], now),
    }
}

fn verify_server(
    end: &CertificateDer<'static>,
    behind: &[CertificateDer<'static>],
    trusted: Vec<CertificateDer<'static>>,
    now: UnixTime,
) -> Result<(), String> {
    let name = Certificate::read(end)?.common_name;
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let verifier = WebPkiServerVerifier::builder_with_provider(store_of(trusted)?, provider());
    let verifier = verifier.build().map_err(|error| error.to_string())?;
    verifier.verify_server_cert(end, behind, &name, &[], now).map(|_| ()).map_err(|error| error.to_string())
}

fn signed_by_one(certificate: &CertificateDer<'_>, issuers: &[CertificateDer<'_>]) -> Result<(), String> {
    let mut why = Err("there is no root".to_owned());
    for issuer in issuers {
        why = signed_by(certificate, issuer);
        if why.is_ok() {
            break;
        }
    }
    why
}

/// For authorities, which the verifiers of connections take for no end certificate.
fn signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> Result<(), String> {
    let parsed = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|error| error.to_string());
    let (certificate, issuer) = (parsed(certificate)?, parsed(issuer)?);
    if certificate.issuer() != issuer.subject() {
        return Err(format!("it was issued by {}, not by {}", certificate.issuer(), issuer.subject()));
    }
    certificate.verify_signature(Some(issuer.public_key())).map_err(|_| "the signature is not its issuer's".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_different_things_are_told() {
        let certificate = |dns: &str, uri: &str| Certificate {
            not_before: OffsetDateTime::UNIX_EPOCH,
            not_after: OffsetDateTime::UNIX_EPOCH,
            public_key: vec![],
            common_name: "p1.oslo.acme-corp.x".to_owned(),
            dns_names: vec![dns.to_owned()],
            uris: vec![uri.to_owned()],
        };
        let own = "p1.oslo.acme-corp.x";
        let uri = "spiffe://x/tenant/acme-corp/site/oslo/poller/p1";
        assert_eq!(certificate(own, uri).disagreement(), None);
        assert!(certificate("p2.oslo.acme-corp.x", uri).disagreement().is_some());
        for wrong in [
            "spiffe://x/tenant/xyz-inc/site/oslo/poller/p1",
            "spiffe://x/tenant/acme-corp/user/p1",
            "spiffe://y/tenant/acme-corp/site/oslo/poller/p1",
            "https://x/",
        ] {
            assert!(certificate(own, wrong).disagreement().is_some(), "{wrong}");
        }
        assert_eq!(dns_name_of("spiffe://x/platform/service/core").as_deref(), Some("core.platform.x"));
        assert_eq!(dns_name_of("spiffe://x/platform/user/ann").as_deref(), Some("ann.user.platform.x"));
    }
}
