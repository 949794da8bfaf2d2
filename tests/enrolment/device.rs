//! A device as an attacker would build one: any names, any keys, any text, straight to the desk.

use std::sync::Arc;

use anyhow::Context;
use bulkhead_accounts::certificates::CertificateFiles;
use bulkhead_accounts::tenancy::Tenancy;
use bulkhead_bus::gate::{ENROLMENT_DESK, decision_subject};
use bulkhead_bus::payload::Decision;
use bulkhead_identity::{
    DeviceEnd, ENROL_PATH, Enrolee, EnrolmentClaims, EnrolmentRequest, RENEW_PATH, RenewalRequest, TrustDomain, proof,
};
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, RawClient, TestDeployment};
use bulkhead_tests::operator::Operator;
use data_encoding::BASE64;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::Value;
use time::{Duration, OffsetDateTime};

/// Of every certificate of a device.
const LIFE: Duration = Duration::days(90);

/// Of the product, with two tenants, and somebody who hears every decision.
pub(crate) struct Ground {
    pub(crate) deployment: TestDeployment,
    pub(crate) decisions: RawClient,
}

impl Ground {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let tenants = ["acme-corp enterprise oslo/p1", "xyz-inc free lima/p1"];
        let deployment = TestDeployment::start_with(&tenants, &[]).await?;
        let decisions = deployment.wiretap("auth").await?;
        Ok(Self { deployment, decisions })
    }

    pub(crate) fn operator(&self) -> Operator<'_> {
        Operator { home: self.deployment.home() }
    }

    /// A token for a poller.
    pub(crate) async fn token(&self, poller: &str) -> anyhow::Result<String> {
        let (added, _) = self.operator().expect(0, &["poller", "add", poller]).await?;
        Ok(added[0]["token"].as_str().context("a token")?.to_owned())
    }

    /// Waits for a decision of the desk.
    pub(crate) async fn decided(&self, what: &str, is_it: impl Fn(&Decision) -> bool) -> anyhow::Result<Decision> {
        let subject = decision_subject(ENROLMENT_DESK);
        let found = eventually(what, LIMIT, || {
            let all = self.decisions.received().into_iter().filter(|message| message.subject == subject);
            let all: Vec<Decision> = all.filter_map(|message| serde_json::from_slice(&message.body).ok()).collect();
            let outcomes: Vec<_> = all.iter().map(|one| one.outcome.clone()).collect();
            std::future::ready(all.into_iter().rev().find(|one| is_it(one)).ok_or(format!("{outcomes:?}")))
        });
        Ok(found.await?)
    }
}

/// Issues certificates for the keys of a poller that has enrolled, as long before `end` as all are: they are due.
pub(crate) fn age(
    ground: &Ground,
    enrolee: &Enrolee,
    end: OffsetDateTime,
    of: impl Fn(DeviceEnd) -> anyhow::Result<(KeyPair, CertificateFiles)>,
) -> anyhow::Result<()> {
    let tenancy = Tenancy::open(ground.deployment.home().to_owned())?;
    let _lock = tenancy.lock()?;
    let mut record = tenancy.records.get(&enrolee.tenant)?;
    let site = record.sites.get_mut(&enrolee.site).context("the site")?;
    for kind in DeviceEnd::ALL {
        let (key, files) = of(kind)?;
        let authority = &tenancy.platform.authority;
        let issued = authority.certify_client(&enrolee.identity(kind), &key, &files, end - LIFE)?;
        match kind {
            DeviceEnd::Leaf => site.leaf.serials.push(issued.serial),
            DeviceEnd::Forwarder | DeviceEnd::Poller => {
                let poller = site.pollers.get_mut(&enrolee.poller).context("the poller")?;
                poller.issued.serials.push(issued.serial);
            }
        }
    }
    Ok(tenancy.records.write(&record)?)
}

/// Keys of one device.
pub(crate) struct Device {
    leaf: KeyPair,
    forwarder: KeyPair,
    poller: KeyPair,
    pub(crate) batch: nkeys::KeyPair,
    sealing: nkeys::XKey,
}

/// What the desk said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

fn csr(key: &KeyPair, enrolee: &Enrolee, end: DeviceEnd) -> anyhow::Result<String> {
    let (identity, domain) = (enrolee.identity(end), TrustDomain::default());
    let subject = identity.dns_name(&domain);
    let mut params = CertificateParams::new(vec![subject.clone()])?;
    params.subject_alt_names.push(SanType::URI(identity.uri(&domain).as_str().try_into()?));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    Ok(params.serialize_request(key)?.pem()?)
}

impl Device {
    /// As if its certificates had been issued for long.
    pub(crate) fn age(&self, ground: &Ground, name: &str) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        age(ground, &Enrolee::parse(name)?, OffsetDateTime::now_utc() + Duration::days(1), |end| {
            let key = match end {
                DeviceEnd::Leaf => &self.leaf,
                DeviceEnd::Forwarder => &self.forwarder,
                DeviceEnd::Poller => &self.poller,
            };
            Ok((KeyPair::from_pem(&key.serialize_pem())?, CertificateFiles::named(folder.path(), "aged")))
        })
    }

    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            leaf: KeyPair::generate()?,
            forwarder: KeyPair::generate()?,
            poller: KeyPair::generate()?,
            batch: nkeys::KeyPair::new_user(),
            sealing: nkeys::XKey::new(),
        })
    }

    /// To go on with what it has, under whatever name.
    pub(crate) fn renewal(&self, name: &str) -> anyhow::Result<RenewalRequest> {
        let enrolee = Enrolee::parse(name)?;
        let of = |end, key| -> anyhow::Result<(DeviceEnd, String)> { Ok((end, csr(key, &enrolee, end)?)) };
        let csrs = vec![
            of(DeviceEnd::Leaf, &self.leaf)?,
            of(DeviceEnd::Forwarder, &self.forwarder)?,
            of(DeviceEnd::Poller, &self.poller)?,
        ];
        Ok(RenewalRequest { poller: name.to_owned(), csrs })
    }

    /// A request with a token, under whatever name.
    pub(crate) fn request(&self, token: &str, name: &str) -> anyhow::Result<EnrolmentRequest> {
        let enrolee = Enrolee::parse(name)?;
        Ok(EnrolmentRequest {
            token: token.to_owned(),
            leaf_csr: csr(&self.leaf, &enrolee, DeviceEnd::Leaf)?,
            forwarder_csr: csr(&self.forwarder, &enrolee, DeviceEnd::Forwarder)?,
            poller_csr: csr(&self.poller, &enrolee, DeviceEnd::Poller)?,
            batch_key: self.batch.public_key(),
            batch_key_proof: BASE64.encode(&self.batch.sign(&proof(token))?),
            sealing_key: self.sealing.public_key(),
            beside: vec![],
        })
    }
}

/// Sends any text to the desk that a token names.
pub(crate) async fn send(desk: &EnrolmentClaims, body: String) -> anyhow::Result<Said> {
    send_to(desk, ENROL_PATH, body).await
}

/// Asks the desk to go on with what was issued.
pub(crate) async fn renew(desk: &EnrolmentClaims, request: &RenewalRequest) -> anyhow::Result<Said> {
    send_to(desk, RENEW_PATH, serde_json::to_string(request)?).await
}

async fn send_to(desk: &EnrolmentClaims, path: &str, body: String) -> anyhow::Result<Said> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(desk.root_certificate()?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
    let answer = client.post(format!("{}{path}", desk.urls[0])).body(body).send().await?;
    let status = answer.status().as_u16();
    Ok(Said { status, body: serde_json::from_slice(&answer.bytes().await?).unwrap_or_default() })
}

/// Sends a request to the desk that its token names.
pub(crate) async fn ask(desk: &EnrolmentClaims, request: &EnrolmentRequest) -> anyhow::Result<Said> {
    send(desk, serde_json::to_string(request)?).await
}
