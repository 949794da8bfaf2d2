//! Pollers that enrol: giving out tokens, and issuing certificates for the keys of whoever comes with one (ADR 13).

use std::collections::BTreeMap;

use bulkhead_bus::PollerName;
use bulkhead_identity::{
    DeviceEnd, Enrolee, EnrolmentAnswer, EnrolmentClaims, EnrolmentFile, EnrolmentRequest, TOKEN_ISSUER,
};
use bulkhead_store::Provisioning;
use data_encoding::BASE64;
use serde_json::json;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::first_people::renew;
use super::paths::PollerPath;
use super::sites::{SiteOrder, merge_serials, refuse_enrolled, refuse_revoked};
use super::{Act, Issued, Links, PollerRecord, SiteRecord, Standing, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::bundle::{BundleOptions, CertificateFacts, PollerManifest, SiteBundle, make_device_files, remove_leftovers};
use crate::certificates::{AuthorityName, key_hash};
use crate::enrolment::{CheckedKeys, Refusal, Refused, TokenBook, TokenRecord, TokenSigner, TokenState, check_keys};

/// How often the machine that has used a token may ask again: its answers may be lost, and each makes new certificates.
const ANSWERS_MOST: usize = 10;

/// A token, which is shown once and kept nowhere.
pub struct GivenToken {
    pub token: Zeroizing<String>,
    pub record: TokenRecord,
}

/// Why nobody was enrolled.
#[derive(Debug)]
pub enum NotEnrolled {
    /// For good: asking again changes nothing.
    Refused(Refused),
    /// For now.
    Failed(TenancyError),
}

impl From<TenancyError> for NotEnrolled {
    fn from(error: TenancyError) -> Self {
        Self::Failed(error)
    }
}

impl From<Refused> for NotEnrolled {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// What a device gets, once that is written down.
pub struct GrantedEnrolment {
    enrolee: Enrolee,
    token: TokenRecord,
    record: TenantRecord,
    keys: CheckedKeys,
    beside: Vec<PollerName>,
}

impl Tenancy {
    /// What tokens were given out.
    #[must_use]
    pub fn tokens(&self) -> TokenBook {
        TokenBook::new(&self.platform.layout)
    }

    /// Makes a token with which one device may enrol as this poller until `life_s` seconds from now, and its site when that is
    /// new. A token that the poller had and has not used is void.
    ///
    /// # Errors
    /// When the tenant is not active, its plan allows no more sites, no desk is known, or something cannot be written.
    pub async fn invite_poller(
        &self,
        links: &Links,
        path: &PollerPath,
        order: &SiteOrder,
        life_s: i64,
    ) -> Result<GivenToken, TenancyError> {
        let mut record = self.check_invitation(path)?;
        let act = self.begin(Act::InvitePoller, &path.to_string(), json!({}))?;
        let site = record.sites.entry(path.site.clone()).or_default();
        site.settings = order.settings(&site.settings);
        record.removed_sites.remove(&path.site);
        self.records.write(&record).map_err(TenancyError::Record)?;
        let tenant = self.tenant_of(&record)?;
        if let Some(database) = links.database().await? {
            database.put_site(&tenant, &path.site).await.map_err(TenancyError::Rows)?;
        }
        self.tell_tenant(links, &record).await?;
        let given = self.give_token(&record, path, life_s)?;
        act.finish(json!({"token": given.record.id}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(given)
    }

    /// The tenant's record, when a bundle of a site may be written.
    ///
    /// # Errors
    /// When there is no such tenant, or the site has pollers that have enrolled.
    pub fn check_bundle(&self, path: &PollerPath) -> Result<TenantRecord, TenancyError> {
        let record = self.records.get(&path.tenant).map_err(TenancyError::Record)?;
        refuse_enrolled(&record, &path.site)?;
        self.refuse_invited(path)?;
        Ok(record)
    }

    /// The tenant's record, when a poller of it may be invited.
    ///
    /// # Errors
    /// When it may not.
    pub fn check_invitation(&self, path: &PollerPath) -> Result<TenantRecord, TenancyError> {
        let record =
            self.staged(&path.tenant, &[TenantStage::Active], "pollers are added to a tenant that is active")?;
        self.check_sites(&record, &path.site)?;
        if let Some(known) = record.sites.get(&path.site).and_then(|site| site.pollers.get(&path.poller)) {
            refuse_revoked(known, path)?;
        }
        if self.runs_here(path) {
            return Err(TenancyError::Invalid(format!(
                "`bulkhead up` runs poller {path} on this machine, with keys of its own: name another poller"
            )));
        }
        self.refuse_leaving(path)?;
        self.refuse_bundled(&record, path)?;
        if self.settings.enrolment_urls.is_empty() {
            return Err(TenancyError::Invalid(format!(
                "nobody says where devices enrol: write enrolment_urls = [\"https://host:port\"] into {} and run \
                 `bulkhead enrolment-desk` there, or say --to DIR to get a bundle that is carried to the site",
                self.platform.layout.platform_file().display()
            )));
        }
        Ok(record)
    }

    /// A bundle beside a machine that is about to enrol could not be written anew.
    pub(super) fn refuse_invited(&self, path: &PollerPath) -> Result<(), TenancyError> {
        let (own, below) = (path.to_string(), format!("{}/{}/", path.tenant, path.site));
        let now = self.now_s();
        let tokens = self.tokens().all().map_err(TenancyError::Enrolment)?.into_iter();
        let invited =
            tokens.filter(|token| token.is_open(now) && token.poller.starts_with(&below) && token.poller != own);
        let invited: Vec<String> = invited.map(|token| token.poller).collect();
        if invited.is_empty() {
            return Ok(());
        }
        Err(TenancyError::Invalid(format!(
            "{} may enrol by a token that is open, and a bundle of its site could not be written any more then: withdraw the token \
             (`bulkhead poller remove {}`), give this poller one, too (without --to), or name another site",
            invited.join(", "),
            invited[0]
        )))
    }

    /// Where somebody enrols no bundle is written any more, so that pollers of a bundle would end with it.
    fn refuse_bundled(&self, record: &TenantRecord, path: &PollerPath) -> Result<(), TenancyError> {
        let place = |poller: &PollerName| PollerPath { poller: poller.clone(), ..path.clone() };
        let pollers = record.sites.get(&path.site).into_iter().flat_map(|site| &site.pollers);
        let bundled = pollers.filter(|(name, poller)| {
            let is_of_bundle = !poller.is_enrolled && poller.standing == Standing::Active;
            is_of_bundle && **name != path.poller && !self.runs_here(&place(name))
        });
        let bundled: Vec<&str> = bundled.map(|(name, _)| name.as_str()).collect();
        if bundled.is_empty() {
            return Ok(());
        }
        let site = &path.site;
        Err(TenancyError::Invalid(format!(
            "site {}/{site} has pollers of a bundle ({}), which could not be written anew beside one that has enrolled: say \
             --to DIR to add this one to the bundle, remove those first, or name another site",
            record.slug,
            bundled.join(", ")
        )))
    }

    fn give_token(&self, record: &TenantRecord, path: &PollerPath, life_s: i64) -> Result<GivenToken, TenancyError> {
        let now = self.now_s();
        let (slug, platform) = (&record.slug, &self.platform);
        let account = record.account.clone();
        let account = account.ok_or_else(|| TenancyError::Invalid(format!("tenant {slug} has no account yet")))?;
        let signer = TokenSigner::ensure(&platform.layout, platform.authority.trust_domain().clone());
        let signer = signer.map_err(TenancyError::Enrolment)?;
        let root = platform.authority.signing_certificate(&AuthorityName::ServerRoot);
        let root = root.map_err(TenancyError::Certificate)?;
        let book = self.tokens();
        book.forget_old(now).map_err(TenancyError::Enrolment)?;
        self.withdraw_tokens(path, "another one was given out")?;
        let record = TokenRecord {
            id: Uuid::new_v4(),
            poller: path.to_string(),
            issued_at: now,
            expires_at: now + life_s,
            state: TokenState::Open,
        };
        let claims = EnrolmentClaims {
            iss: TOKEN_ISSUER.to_owned(),
            aud: platform.authority.trust_domain().to_string(),
            sub: record.poller.clone(),
            jti: record.id.to_string(),
            iat: now,
            exp: record.expires_at,
            account,
            urls: self.settings.enrolment_urls.clone(),
            root: BASE64.encode(&root),
        };
        let token = signer.sign(&claims).map(Zeroizing::new).map_err(TenancyError::Enrolment)?;
        book.write(&record).map_err(TenancyError::Enrolment)?;
        Ok(GivenToken { token, record })
    }

    /// The token that a poller can still use.
    ///
    /// # Errors
    /// When what was given out cannot be read.
    pub fn open_token(&self, path: &PollerPath) -> Result<Option<TokenRecord>, TenancyError> {
        self.tokens().open_of(&path.to_string(), self.now_s()).map_err(TenancyError::Enrolment)
    }

    /// Makes void what was given out for a poller and was not used; says how many those were.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn withdraw_tokens(&self, path: &PollerPath, why: &str) -> Result<usize, TenancyError> {
        let poller = path.to_string();
        self.tokens().withdraw(|of| of == poller, why, self.now_s()).map_err(TenancyError::Enrolment)
    }

    /// Whether a device with a verified token gets what it asks for. Nothing is changed.
    ///
    /// # Errors
    /// When it is refused, or cannot be said now.
    pub fn check_enrolment(
        &self,
        claims: &EnrolmentClaims,
        request: &EnrolmentRequest,
    ) -> Result<GrantedEnrolment, NotEnrolled> {
        let enrolee = claims.enrolee().map_err(|error| Refused::new(Refusal::TokenForeign, error.to_string()))?;
        let token = self.token_of(claims)?;
        let record = self.enrolling_tenant(claims, &enrolee)?;
        let keys = check_keys(request, &enrolee, self.platform.authority.trust_domain()).map_err(Refused::from)?;
        if let TokenState::Used { keys: used_for, answers, .. } = &token.state {
            if *used_for != keys.digest {
                return Err(Refused::used().into());
            }
            if *answers >= ANSWERS_MOST {
                return Err(Refused::used_up(*answers).into());
            }
        }
        // What was taken back is not given out again for asking: whoever has stolen it would come along.
        let revoked = self.platform.authority.revoked_keys(&AuthorityName::Tenant(enrolee.tenant.clone()));
        let revoked = revoked.map_err(TenancyError::Certificate)?;
        if let Some(end) = DeviceEnd::ALL.into_iter().find(|&end| revoked.contains(&key_hash(keys.keys.tls(end)))) {
            return Err(Refused::key_revoked(end).into());
        }
        Ok(GrantedEnrolment { enrolee, token, record, keys, beside: request.beside.clone() })
    }

    /// Issues what was granted. Whoever has held the platform's lock since it was may call it.
    ///
    /// # Errors
    /// When it cannot be done now; the same device may ask again.
    pub async fn enrol(
        &self,
        database: Option<&Provisioning>,
        granted: GrantedEnrolment,
        host: &str,
    ) -> Result<EnrolmentAnswer, TenancyError> {
        let GrantedEnrolment { enrolee, token, record, keys, beside } = granted;
        let act = self.begin(Act::EnrolPoller, &enrolee.to_string(), json!({"token": token.id, "host": host}))?;
        let answers = match &token.state {
            TokenState::Used { answers, .. } => answers + 1,
            TokenState::Open | TokenState::Withdrawn { .. } => 1,
        };
        let used = TokenState::Used { at: self.now_s(), keys: keys.digest.clone(), host: host.to_owned(), answers };
        // First of all: from here on nobody else can use it, however this ends.
        self.tokens().write(&TokenRecord { state: used, ..token }).map_err(TenancyError::Enrolment)?;
        let made = self.certify_device(record, &enrolee, &keys, &beside, database).await?;
        let answer = answer(&enrolee, &made);
        act.finish(json!({"serials": serials(&made, &enrolee.poller)}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(answer)
    }

    fn token_of(&self, claims: &EnrolmentClaims) -> Result<TokenRecord, NotEnrolled> {
        let unknown = || Refused::withdrawn("this platform does not know of it");
        let id: Uuid = claims.jti.parse().map_err(|_| unknown())?;
        let found = self.tokens().find(&id).map_err(TenancyError::Enrolment)?;
        let token = found.filter(|token| token.poller == claims.sub).ok_or_else(unknown)?;
        match &token.state {
            TokenState::Withdrawn { why, .. } => Err(Refused::withdrawn(why).into()),
            TokenState::Open | TokenState::Used { .. } => Ok(token),
        }
    }

    fn enrolling_tenant(&self, claims: &EnrolmentClaims, enrolee: &Enrolee) -> Result<TenantRecord, NotEnrolled> {
        let slug = &enrolee.tenant;
        let found = self.records.find(slug).map_err(TenancyError::Record)?;
        let other = || Refused {
            actual: Some(slug.to_string()),
            ..Refused::new(Refusal::OtherAccount, format!("the token is for an earlier tenant called {slug}"))
        };
        let record = found.filter(|record| record.account.as_ref() == Some(&claims.account)).ok_or_else(other)?;
        if record.stage != TenantStage::Active {
            let problem = format!("tenant {slug} is {}: its pollers enrol when it is active", record.stage.as_str());
            return Err(Refused::new(Refusal::TenantClosed, problem).into());
        }
        let Some(site) = record.sites.get(&enrolee.site) else {
            let problem = format!("there is no site {slug}/{} any more", enrolee.site);
            return Err(Refused::new(Refusal::PollerClosed, problem).into());
        };
        let (tenant, site_name, poller) = (slug.clone(), enrolee.site.clone(), enrolee.poller.clone());
        if let Err(error) = self.refuse_bundled(&record, &PollerPath { tenant, site: site_name, poller }) {
            return Err(Refused::new(Refusal::PollerClosed, error.to_string()).into());
        }
        let known = site.pollers.get(&enrolee.poller);
        if known.is_some_and(|poller| poller.standing == Standing::Revoked) {
            return Err(Refused::new(Refusal::PollerClosed, format!("poller {enrolee} is revoked")).into());
        }
        Ok(record)
    }

    /// What is known of the pollers that a device has already; those that are not active are left out.
    fn pollers_beside(
        &self,
        site: &SiteRecord,
        enrolee: &Enrolee,
        beside: &[PollerName],
    ) -> Result<BTreeMap<PollerName, PollerManifest>, TenancyError> {
        let issuer = AuthorityName::Tenant(enrolee.tenant.clone());
        let authority = &self.platform.authority;
        let issued = authority.list_issued(&issuer).map_err(TenancyError::Certificate)?;
        let mut known = BTreeMap::new();
        for name in beside.iter().filter(|name| **name != enrolee.poller) {
            let Some(poller) = site.pollers.get(name).filter(|poller| poller.standing == Standing::Active) else {
                continue;
            };
            let own = Enrolee { poller: name.clone(), ..enrolee.clone() };
            let last_of = |end: DeviceEnd| {
                let subject = own.identity(end).dns_name(authority.trust_domain());
                let is_its = |record: &&crate::certificates::IssuedRecord| {
                    record.subject == subject && poller.issued.serials.contains(&record.serial)
                };
                issued.iter().rev().find(is_its).map(CertificateFacts::of)
            };
            let (Some(certificate), Some(forwarder)) = (last_of(DeviceEnd::Poller), last_of(DeviceEnd::Forwarder))
            else {
                continue;
            };
            let Ok(batch_key) = poller.batch_key.parse() else { continue };
            let manifest = PollerManifest { poller: name.clone(), certificate, forwarder, batch_key };
            known.insert(name.clone(), manifest);
        }
        Ok(known)
    }

    async fn certify_device(
        &self,
        mut record: TenantRecord,
        enrolee: &Enrolee,
        checked: &CheckedKeys,
        beside: &[PollerName],
        database: Option<&Provisioning>,
    ) -> Result<SiteBundle, TenancyError> {
        remove_leftovers(self.platform.layout.home());
        let site = record.sites.get(&enrolee.site).cloned().unwrap_or_default();
        let beside = self.pollers_beside(&site, enrolee, beside)?;
        let renewal_urls = self.settings.enrolment_urls.clone();
        let options = BundleOptions { renewal_urls, ..site.settings.options() };
        let place = (&enrolee.tenant, &enrolee.site);
        let made = make_device_files(&self.platform, &self.settings.leaf_urls, place, &checked.keys, &beside, &options);
        let made = made.map_err(|error| TenancyError::Bundle(Box::new(error)))?;
        // The record first: what was issued must be known before it leaves this machine.
        let site = enrolled_site(site, &made, checked, self.now_s());
        record.sites.insert(enrolee.site.clone(), site);
        self.records.write(&record).map_err(TenancyError::Record)?;
        if let Some(database) = database {
            let tenant = self.tenant_of(&record)?;
            let put = database.put_poller(&tenant, &enrolee.site, &enrolee.poller, &checked.keys.batch).await;
            put.map_err(TenancyError::Rows)?;
        }
        Ok(made)
    }
}

fn serials(made: &SiteBundle, poller: &PollerName) -> Vec<String> {
    let own = made.manifest.pollers.iter().filter(|one| one.poller == *poller);
    let own = own.flat_map(|one| [one.certificate.serial.clone(), one.forwarder.serial.clone()]);
    own.chain([made.manifest.leaf.certificate.serial.clone()]).collect()
}

/// What is known of a site once a device has certificates. Pollers beside it are as they were.
fn enrolled_site(mut site: SiteRecord, made: &SiteBundle, checked: &CheckedKeys, now_s: i64) -> SiteRecord {
    renew(now_s, &mut site.leaf, &mut site.earlier_leaves, made.leaf.clone());
    for poller in made.manifest.pollers.iter().filter(|one| one.poller == checked.keys.poller) {
        let issued = Issued {
            serials: merge_serials(site.pollers.get(&poller.poller), poller),
            certificates_expire: poller.certificate.not_after,
        };
        let record = PollerRecord {
            standing: Standing::Active,
            batch_key: poller.batch_key.as_str().to_owned(),
            sealing_key: Some(checked.sealing_key.clone()),
            is_enrolled: true,
            tls_keys: DeviceEnd::ALL.map(|end| (end, key_hash(checked.keys.tls(end)))).into(),
            issued,
        };
        site.pollers.insert(poller.poller.clone(), record);
    }
    site
}

fn answer(enrolee: &Enrolee, made: &SiteBundle) -> EnrolmentAnswer {
    let file = |file: &crate::bundle::BundleFile| EnrolmentFile {
        path: file.path.display().to_string(),
        text: String::from_utf8_lossy(&file.bytes).into_owned(),
    };
    EnrolmentAnswer {
        poller: enrolee.to_string(),
        ends_at: made.manifest.ends_at,
        files: made.files.files().iter().map(file).collect(),
    }
}
