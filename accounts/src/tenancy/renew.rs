//! Certificates that go on where those of a device end: for the same keys, and only while they are current (ADR 13).

use std::collections::BTreeMap;
use std::path::Path;

use bulkhead_identity::{DeviceEnd, Enrolee, EnrolmentAnswer, EnrolmentFile, RenewalRequest, is_due_for_renewal};
use rcgen::PublicKey;
use serde_json::json;

use super::enrol::NotEnrolled;
use super::first_people::renew;
use super::{Act, Issued, Standing, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::certificates::{AuthorityName, CertificateFiles, IssuedCertificate, IssuedRecord, key_hash};
use crate::enrolment::{Refusal, Refused, check_renewal};
use crate::files::read_text;

/// Of one key within a day; more is a device that does not keep what it gets.
const RENEWALS_MOST: usize = 5;
const DAY_S: i64 = 86_400;
/// A device's clock may be ahead of ours.
const CLOCK_SLACK_S: i64 = 3_600;
/// Behind the certificates, because they may have changed since: whom the device trusts.
const TRUSTED: [&str; 2] = ["tls/tenant.crt", "tls/hub-root.crt"];

/// What a device gets, once that is written down.
pub struct GrantedRenewal {
    enrolee: Enrolee,
    record: TenantRecord,
    keys: BTreeMap<DeviceEnd, PublicKey>,
}

/// Whoever asks learns nothing of what there is: the record says what was wrong.
fn not_current(what: impl Into<String>) -> Refused {
    Refused {
        detail: Some(what.into()),
        ..Refused::new(
            Refusal::NotCurrent,
            "no current certificate is for these keys: ask your operator for a token to enrol anew (`bulkhead poller add`)",
        )
    }
}

impl Tenancy {
    /// Issues certificates for keys that have current ones. Whoever has held the platform's lock since it was granted may call
    /// it.
    ///
    /// # Errors
    /// When it cannot be done now.
    pub fn renew_device(&self, granted: GrantedRenewal, host: &str) -> Result<EnrolmentAnswer, TenancyError> {
        let GrantedRenewal { enrolee, record, keys } = granted;
        let act = self.begin(Act::RenewPoller, &enrolee.to_string(), json!({"host": host}))?;
        let (answer, issued) = self.certify_again(&enrolee, &keys)?;
        self.remember_renewed(record, &enrolee, &issued)?;
        let serials: Vec<&str> = issued.values().map(|one| one.serial.as_str()).collect();
        act.finish(json!({"serials": serials}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(answer)
    }

    /// Whether a device gets what it asks for. Nothing is changed.
    ///
    /// # Errors
    /// When it is refused, or cannot be said now.
    pub fn check_renewal(&self, request: &RenewalRequest) -> Result<GrantedRenewal, NotEnrolled> {
        let shown: String = request.poller.chars().take(100).collect();
        let unreadable =
            || Refused::new(Refusal::Unreadable, format!("{shown:?} is no poller: write tenant/site/poller"));
        let enrolee = Enrolee::parse(&request.poller).map_err(|_| unreadable())?;
        let found = self.records.find(&enrolee.tenant).map_err(TenancyError::Record)?;
        let record = found.ok_or_else(|| not_current("there is no such tenant"))?;
        // Whoever is suspended may come back; what it gets opens nothing until then.
        if !matches!(record.stage, TenantStage::Active | TenantStage::Suspended) {
            return Err(not_current("the tenant leaves").into());
        }
        let domain = self.platform.authority.trust_domain();
        let keys = check_renewal(request, &enrolee, domain).map_err(Refused::from)?;
        self.check_current(&record, &enrolee, &keys)?;
        Ok(GrantedRenewal { enrolee, record, keys })
    }

    fn check_current(
        &self,
        record: &TenantRecord,
        enrolee: &Enrolee,
        keys: &BTreeMap<DeviceEnd, PublicKey>,
    ) -> Result<(), NotEnrolled> {
        let issuer = AuthorityName::Tenant(enrolee.tenant.clone());
        let authority = &self.platform.authority;
        let issued = authority.list_issued(&issuer).map_err(TenancyError::Certificate)?;
        let revoked = authority.revoked_keys(&issuer).map_err(TenancyError::Certificate)?;
        let poller = record.sites.get(&enrolee.site).and_then(|site| site.pollers.get(&enrolee.poller));
        let poller = poller.filter(|poller| poller.is_enrolled && poller.standing == Standing::Active);
        let poller = poller.ok_or_else(|| not_current("there is no such poller that has enrolled and is let in"))?;
        for (&end, key) in keys {
            let (subject, hash) = (enrolee.identity(end).dns_name(authority.trust_domain()), key_hash(key));
            // Those of an earlier machine, or of before new keys were made, are nobody's.
            if poller.tls_keys.get(&end) != Some(&hash) {
                return Err(not_current(format!("the key for {subject} is not the one that it enrolled with")).into());
            }
            let of_key: Vec<&IssuedRecord> =
                issued.iter().filter(|one| one.subject == subject && one.key_fingerprint == hash).collect();
            if revoked.contains(&hash) {
                return Err(not_current(format!("a certificate of the key for {subject} was revoked")).into());
            }
            let good: Vec<_> = of_key.iter().filter(|one| one.not_after > self.platform.now).collect();
            if good.is_empty() {
                return Err(not_current(format!("no certificate of {subject} is good now")).into());
            }
            // An answer may have been lost: then the device shows the one before, which is due.
            let soon = self.now_s() + CLOCK_SLACK_S;
            let is_due = |one: &&&IssuedRecord| {
                is_due_for_renewal(one.not_before.unix_timestamp(), one.not_after.unix_timestamp(), soon)
            };
            if !good.iter().any(is_due) {
                let problem =
                    format!("the certificate of {subject} is good for long: it is renewed at two thirds of its life");
                return Err(Refused::new(Refusal::NotDue, problem).into());
            }
            let young = of_key.iter().filter(|one| one.not_before.unix_timestamp() > self.now_s() - DAY_S).count();
            if young >= RENEWALS_MOST {
                let problem = format!("{subject} got {young} certificates within a day: see why it does not keep them");
                return Err(Refused::new(Refusal::TooOften, problem).into());
            }
        }
        Ok(())
    }

    fn certify_again(
        &self,
        enrolee: &Enrolee,
        keys: &BTreeMap<DeviceEnd, PublicKey>,
    ) -> Result<(EnrolmentAnswer, BTreeMap<DeviceEnd, IssuedCertificate>), TenancyError> {
        let platform = &self.platform;
        let folder =
            crate::bundle::temporary(&platform.layout).map_err(|error| TenancyError::Bundle(Box::new(error)))?;
        let read = |path: &Path| read_text(path).map_err(TenancyError::File);
        let (mut issued, mut files) = (BTreeMap::new(), Vec::new());
        for (&end, key) in keys {
            let written = CertificateFiles::named(folder.path(), "renewed");
            let identity = enrolee.identity(end);
            let certificate = platform.authority.certify_client(&identity, key, &written, platform.now);
            issued.insert(end, certificate.map_err(TenancyError::Certificate)?);
            let path = format!("{}.crt", end.path(&enrolee.poller));
            files.push(EnrolmentFile { path, text: read(&written.cert_file)? });
        }
        let [tenant, root] = TRUSTED.map(str::to_owned);
        let authority = &platform.authority;
        files.push(EnrolmentFile { path: tenant, text: read(&authority.tenant_intermediate_file(&enrolee.tenant))? });
        files.push(EnrolmentFile { path: root, text: read(&authority.server_root_file())? });
        let ends_at = issued.values().map(|one| one.not_after.unix_timestamp()).min().unwrap_or_default();
        Ok((EnrolmentAnswer { poller: enrolee.to_string(), ends_at, files }, issued))
    }

    /// Before it leaves this machine, so that all of it can be revoked.
    fn remember_renewed(
        &self,
        mut record: TenantRecord,
        enrolee: &Enrolee,
        issued: &BTreeMap<DeviceEnd, IssuedCertificate>,
    ) -> Result<(), TenancyError> {
        let site = record.sites.entry(enrolee.site.clone()).or_default();
        for (end, certificate) in issued {
            match end {
                DeviceEnd::Leaf => {
                    let now = Issued::new(certificate.clone());
                    renew(self.platform.now.unix_timestamp(), &mut site.leaf, &mut site.earlier_leaves, now);
                }
                DeviceEnd::Forwarder | DeviceEnd::Poller => {
                    if let Some(poller) = site.pollers.get_mut(&enrolee.poller) {
                        poller.issued.serials.push(certificate.serial.clone());
                        poller.issued.certificates_expire = certificate.not_after.unix_timestamp();
                    }
                }
            }
        }
        self.records.write(&record).map_err(TenancyError::Record)
    }
}
