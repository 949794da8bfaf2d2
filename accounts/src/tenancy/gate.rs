//! What the gatekeepers are told: a record and the keys of each account that is entered through them, whenever either
//! changes (docs/adr/0012-the-gatekeepers-knowledge.md).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bulkhead_bus::gate::{GATE_BUCKET, GateKey};
use bulkhead_bus::{AccountKey, TenantSlug};
use bulkhead_claims::Claims;
use bulkhead_identity::{GateBody, GateRecord, GateSite, Withdrawal};
use bulkhead_runtime::{Bus, Chain, eventually, now_ms};
use bytes::Bytes;

use super::preview::Closing;
use super::{Links, Preview, Tenancy, TenancyError, TenantRecord, is_intake};
use crate::certificates::AuthorityName;
use crate::gate::{
    AUTH, GateBook, GateSecrets, SENT, SealedFor, Told, Vouching, platform_gate, sealed_keys, tenant_gate,
};
use crate::hub_size::HubSize;
use crate::operator::{AccountRecord, SYSTEM};
use crate::render::{DECISIONS_LOG, GATE};
use crate::resolver::{ConnectionFacts, field_differences};
use crate::up::{CORE, OPS};

const PUT_LIMIT: Duration = Duration::from_secs(5);
/// A hub of three takes streams once its servers have chosen a leader.
const BUCKET_LIMIT: Duration = Duration::from_secs(30);
/// All accounts of a platform.
const READ_LIMIT: Duration = Duration::from_secs(60);
/// How long connections may take to go that are let in no more.
const GONE_LIMIT: Duration = Duration::from_secs(15);

/// Makes the gatekeepers' bucket and the log of their decisions, with a copy on each server.
///
/// # Errors
/// When the hub does not take them in time.
pub async fn ensure_gate(gate: &Bus, hub: HubSize) -> Result<(), TenancyError> {
    let made = eventually("the gatekeepers' bucket on every server", BUCKET_LIMIT, || async {
        let bucket = gate.ensure_bucket(&GATE, hub.servers()).await;
        bucket.map_err(|error| Chain(&error).to_string())?;
        let log = gate.ensure_log(&DECISIONS_LOG, hub.servers()).await;
        log.map_err(|error| Chain(&error).to_string())
    });
    made.await.map_err(TenancyError::NoBucket)
}

fn vouching_of(tenancy: &Tenancy, name: &AuthorityName) -> Result<Vouching, TenancyError> {
    Vouching::of(&tenancy.platform.authority, name, tenancy.platform.now).map_err(TenancyError::Gate)
}

/// The record as gatekeepers will read it.
fn read_body(account: &AccountRecord, body: &GateBody) -> Result<GateRecord, TenancyError> {
    let claims = Claims::new(account.key.to_string(), account.name.clone(), 0, body.clone());
    GateRecord::of_claims(claims).map_err(TenancyError::GateRecord)
}

fn withdrawal(record: &GateRecord, connection: &ConnectionFacts) -> Option<Withdrawal> {
    let above: Vec<&str> = connection.certificate.above.iter().map(String::as_str).collect();
    record.withdrawal(&connection.presence(&above))
}

impl Tenancy {
    /// What is to be known of a tenant's account.
    ///
    /// # Errors
    /// When its authority's files are damaged.
    pub fn gate_of_tenant(&self, record: &TenantRecord, account: &AccountRecord) -> Result<GateBody, TenancyError> {
        let vouching = vouching_of(self, &AuthorityName::Tenant(record.slug.clone()))?;
        Ok(tenant_gate(record, account, vouching))
    }

    /// What is to be known of any account; `None` where nobody enters through the gatekeepers: SYS, AUTH and SENT, and
    /// accounts of other tools.
    ///
    /// # Errors
    /// When a record or an authority's files are damaged.
    pub fn gate_of(&self, account: &AccountRecord) -> Result<Option<GateBody>, TenancyError> {
        match account.name.as_str() {
            SYSTEM | AUTH | SENT => Ok(None),
            name if name == CORE || name == OPS || is_intake(name) => {
                let vouching = vouching_of(self, &AuthorityName::Platform)?;
                Ok(Some(platform_gate(account, &self.platform_people()?, vouching)))
            }
            name => {
                let Ok(slug) = name.parse::<TenantSlug>() else { return Ok(None) };
                let record = self.records.find(&slug).map_err(TenancyError::Record)?;
                record.map(|record| self.gate_of_tenant(&record, account)).transpose()
            }
        }
    }

    /// Tells the gatekeepers what is to be known of an account, by what its files say.
    ///
    /// # Errors
    /// When it cannot be signed, or the hub does not take it.
    pub async fn tell_gate(&self, links: &Links, account: &AccountRecord) -> Result<(), TenancyError> {
        match self.gate_of(account)? {
            Some(body) => self.tell(links, account, &body).await,
            None => Ok(()),
        }
    }

    /// Puts an account in force: on every server, and then with the gatekeepers. In this order an account that is closed is
    /// closed whether they can be told or not, and one that is new is there before they let anybody in.
    ///
    /// # Errors
    /// When a server or the hub's bucket does not take it.
    pub async fn put_in_force(&self, links: &Links, account: &AccountRecord) -> Result<(), TenancyError> {
        links.push(account).await?;
        self.tell_gate(links, account).await
    }

    /// Tells the gatekeepers of a tenant as `record` has it.
    ///
    /// # Errors
    /// When it cannot be signed, or the hub does not take it.
    pub async fn tell_tenant(&self, links: &Links, record: &TenantRecord) -> Result<GateBody, TenancyError> {
        let account = self.account_named(record.slug.as_str())?;
        let body = self.gate_of_tenant(record, &account)?;
        self.tell(links, &account, &body).await?;
        Ok(body)
    }

    /// Tells the gatekeepers what is to be known of an account, by its name; done when nobody is in whom they let in no more.
    ///
    /// # Errors
    /// When it cannot be signed, the hub does not take it, or somebody stays.
    pub async fn narrow(&self, links: &Links, name: &str) -> Result<(), TenancyError> {
        let account = self.account_named(name)?;
        match self.gate_of(&account)? {
            Some(body) => self.put_out(links, &account, &body).await,
            None => Ok(()),
        }
    }

    /// The gatekeepers hear a record on its way to the bucket: without a quorum of servers it is not kept there, and nobody is
    /// in any more all the same.
    pub(super) async fn put_out(
        &self,
        links: &Links,
        account: &AccountRecord,
        body: &GateBody,
    ) -> Result<(), TenancyError> {
        let told = self.tell(links, account, body).await;
        if !matches!(told, Ok(()) | Err(TenancyError::NotTold(_))) {
            return told;
        }
        self.wait_until_gone(links, account, body).await?;
        match told {
            Err(TenancyError::NotTold(source)) => Err(TenancyError::NotKept { account: account.name.clone(), source }),
            told => told,
        }
    }

    pub(super) fn account_named(&self, name: &str) -> Result<AccountRecord, TenancyError> {
        let account = self.platform.operator.account(name).map_err(TenancyError::Operator)?;
        let missing = || TenancyError::Operator(crate::operator::OperatorError::NoAccount(name.to_owned()));
        account.ok_or_else(missing)
    }

    /// Tells the gatekeepers this of an account, whatever its files say.
    ///
    /// # Errors
    /// When it cannot be signed, or the hub does not take it.
    pub async fn tell(&self, links: &Links, account: &AccountRecord, body: &GateBody) -> Result<(), TenancyError> {
        let told = self.to_tell(account, body)?;
        let gate = links.gate().await?;
        self.put_keys(gate, account, &told).await?;
        put(gate, &GateKey::Record(account.key.clone()), told.record.into_bytes()).await
    }

    /// Refuses when a key of the account could not be given to the gatekeepers.
    pub(super) fn check_seals(&self, account: &str) -> Result<(), TenancyError> {
        let account = self.account_named(account)?;
        if self.gate_of(&account)?.is_none() {
            return Ok(());
        }
        let secrets = GateSecrets::new(&self.platform.layout);
        let (xkey, sender) =
            (secrets.xkey().map_err(TenancyError::Gate)?, secrets.sender().map_err(TenancyError::Gate)?);
        let sealed = sealed_keys(&self.platform.operator, &account, &sender, xkey.public());
        sealed.map(drop).map_err(TenancyError::Gate)
    }

    fn to_tell(&self, account: &AccountRecord, body: &GateBody) -> Result<Told, TenancyError> {
        let book = GateBook::new(&self.platform.layout);
        let told = book.record(&self.platform.operator, account, body, now_ms());
        told.map_err(TenancyError::Gate)
    }

    /// Sends keys that the gatekeepers do not have yet: before the record that names them.
    async fn put_keys(&self, gate: &Bus, account: &AccountRecord, told: &Told) -> Result<(), TenancyError> {
        let secrets = GateSecrets::new(&self.platform.layout);
        let xkey = secrets.xkey().map_err(TenancyError::Gate)?;
        let keys = SealedFor::new(account, xkey.public());
        if told.keys.as_ref() == Some(&keys) {
            return Ok(());
        }
        let sender = secrets.sender().map_err(TenancyError::Gate)?;
        let sealed = sealed_keys(&self.platform.operator, account, &sender, xkey.public());
        put(gate, &GateKey::Keys(account.key.clone()), sealed.map_err(TenancyError::Gate)?).await?;
        let told = Told { keys: Some(keys), ..told.clone() };
        GateBook::new(&self.platform.layout).write(&account.name, &told).map_err(TenancyError::Gate)
    }

    /// Makes the gatekeepers' bucket say what is to be known of these accounts: what it lacks, what is different in it, and
    /// what is of no account of the store any more. An account that is not among these, such as one that another tool has
    /// changed, stays as it was told. Returns how many accounts were told anew.
    ///
    /// # Errors
    /// When something cannot be signed, or the hub does not take it.
    pub async fn tell_gate_all(
        &self,
        links: &Links,
        accounts: &[&AccountRecord],
        progress: &dyn Fn(usize),
    ) -> Result<usize, TenancyError> {
        let gate = links.gate().await?;
        let (entries, _) = gate.watch_bucket(GATE_BUCKET, READ_LIMIT).await.map_err(TenancyError::Bucket)?;
        let held: BTreeMap<String, Bytes> =
            entries.into_iter().filter_map(|entry| Some((entry.key, entry.value?))).collect();
        let mut anew = 0;
        for (done, account) in accounts.iter().enumerate() {
            progress(done);
            let Some(body) = self.gate_of(account)? else { continue };
            let (keys, record) = (GateKey::Keys(account.key.clone()), GateKey::Record(account.key.clone()));
            let mut told = self.to_tell(account, &body)?;
            if !held.contains_key(&keys.text()) {
                told.keys = None;
            }
            self.put_keys(gate, account, &told).await?;
            if held.get(&record.text()).is_none_or(|held| held[..] != *told.record.as_bytes()) {
                put(gate, &record, told.record.into_bytes()).await?;
                anew += 1;
            }
        }
        let operator = &self.platform.operator;
        let kept: BTreeSet<AccountKey> =
            operator.account_names().iter().filter_map(|name| operator.key_of(name)).collect();
        for key in held.keys().filter_map(|key| GateKey::parse(key)).filter(|key| !kept.contains(key.account())) {
            remove(gate, &key).await?;
        }
        Ok(anew)
    }

    /// The gatekeepers forget an account and its keys: nobody enters it.
    ///
    /// # Errors
    /// When the hub does not take it.
    pub async fn untell_gate(
        &self,
        links: &Links,
        slug: &TenantSlug,
        account: &AccountKey,
    ) -> Result<(), TenancyError> {
        // First: whoever comes back after half of this is told anew.
        GateBook::new(&self.platform.layout).end(slug.as_str()).map_err(TenancyError::Gate)?;
        let gate = links.gate().await?;
        for key in [GateKey::Record(account.clone()), GateKey::Keys(account.clone())] {
            remove(gate, &key).await?;
        }
        Ok(())
    }

    /// Waits until nobody is in an account whom its record does not admit: the gatekeepers close them.
    ///
    /// # Errors
    /// When somebody stays.
    pub(super) async fn wait_until_gone(
        &self,
        links: &Links,
        account: &AccountRecord,
        body: &GateBody,
    ) -> Result<(), TenancyError> {
        let record = read_body(account, body)?;
        let gone = eventually("the end of connections that are let in no more", GONE_LIMIT, || async {
            let open = links.connections(account.key.as_str()).await.map_err(|error| Chain(&error).to_string())?;
            let stays = open.iter().filter_map(|one| Some((one, withdrawal(&record, one)?)));
            let stays: Vec<String> =
                stays.map(|(one, why)| format!("{} on {}: {}", one.user_name, one.server.name, why.as_str())).collect();
            if stays.is_empty() { Ok(()) } else { Err(stays.join("; ")) }
        });
        gone.await.map_err(|source| TenancyError::StillIn { account: account.name.clone(), source })
    }

    /// What another record of an account would change, and whom the gatekeepers would close.
    ///
    /// # Errors
    /// When the servers cannot be asked.
    pub(super) async fn preview_gate(
        &self,
        links: &Links,
        account: &AccountRecord,
        (now, wanted): (&GateBody, &GateBody),
    ) -> Result<Preview, TenancyError> {
        let fields = field_differences(&shown(wanted), &shown(now));
        let record = read_body(account, wanted)?;
        let roles = |key: &str| record.keys.iter().find(|(_, known)| *known == key).map(|(role, _)| role.name());
        let open = links.connections(account.key.as_str()).await?;
        let closing = open.iter().filter_map(|one| {
            let why = withdrawal(&record, one)?;
            let role = roles(&one.issuer_key).unwrap_or_default();
            Some(Closing::new(one, role.to_owned(), why.as_str().to_owned()))
        });
        let unasked = links.silent_servers().await?;
        Ok(Preview { account: account.name.clone(), fields, closing: closing.collect(), unasked })
    }
}

/// A record for people to read: what a site says nothing of would be no difference.
fn shown(body: &GateBody) -> serde_json::Value {
    let mut value = serde_json::json!({ "gate": body });
    for (name, site) in &body.sites {
        if *site == GateSite::default() {
            value["gate"]["sites"][name] = "from anywhere".into();
        }
    }
    value
}

async fn put(gate: &Bus, key: &GateKey, value: Vec<u8>) -> Result<(), TenancyError> {
    let kept = gate.put(GATE_BUCKET, &key.text(), value.into(), PUT_LIMIT).await;
    kept.map(drop).map_err(TenancyError::NotTold)
}

async fn remove(gate: &Bus, key: &GateKey) -> Result<(), TenancyError> {
    gate.remove(GATE_BUCKET, &key.text(), PUT_LIMIT).await.map(drop).map_err(TenancyError::NotTold)
}
