//! Controls: gatekeepers that check less than ours, written for this, and the attacks that succeed before them and fail before
//! the real one.

use std::collections::BTreeSet;

use anyhow::Context;
use bulkhead_accounts::certificates::{ClientIdentity, inspect};
use bulkhead_accounts::gate::AUTH;
use bulkhead_accounts::operator::{AccountRecord, UserRequest};
use bulkhead_bus::Role;
use bulkhead_bus::gate::{CALLOUT, CALLOUT_QUEUE, SERVER_XKEY};
use bulkhead_claims::{AuthorizationRequestBody, KeyKind, SealingKey, SigningKey};
use bulkhead_gatekeeper::answer::{Answering, user_token};
use bulkhead_gatekeeper::decide::{Admission, Kind, Question, Refusal, Trust, decide};
use bulkhead_gatekeeper::gate::Gate;
use bulkhead_gatekeeper::request::{Asked, read_request};
use bulkhead_identity::{TrustDomain, TrustedRoots};
use bulkhead_runtime::{Bus, Responder, eventually};
use bulkhead_testkit::{Forger, client_params};
use rcgen::{DistinguishedName, DnType};
use time::OffsetDateTime;

use crate::entering::poller;
use crate::hub::{ACME, GateHub, LIMIT, XYZ};

const SESSION_S: i64 = 600;

/// What it does not check.
#[derive(Debug, Clone, Copy)]
enum Laxity {
    /// The common name decides, whoever signed it and whatever else it says.
    TrustsTheCommonName,
    /// Everything is checked but whether the certificate is for such a connection.
    AsksForNoRole,
}

struct LaxGatekeeper {
    laxity: Laxity,
    answering: Answering,
    accounts: Vec<(String, AccountRecord)>,
    /// Of the roles of both tenants.
    keys: Vec<SigningKey>,
    gate: Gate,
    trust: Trust,
}

impl LaxGatekeeper {
    fn by_common_name(&self, request: &AuthorizationRequestBody, kind: Kind) -> Option<Admission> {
        let tls = request.client_tls.as_ref()?;
        let facts = inspect(tls.verified_chains.first()?.first()?).ok()?;
        let [name, site, tenant] = facts.subject.split('.').take(3).collect::<Vec<_>>().try_into().ok()?;
        let (_, account) = self.accounts.iter().find(|(slug, _)| slug == tenant)?;
        let role = if kind == Kind::Leaf { Role::Leaf } else { Role::Poller };
        Some(Admission { account: account.key.clone(), role, name: name.to_owned(), site: site.parse().ok() })
    }

    fn without_role(&self, request: &AuthorizationRequestBody, kind: Kind) -> Option<Admission> {
        let tls = request.client_tls.as_ref()?;
        let look = |kind| {
            let name = request.connect_opts.name.as_str();
            let question = Question { kind, name, host: &request.client_info.host, chains: &tls.verified_chains };
            let now = OffsetDateTime::now_utc().unix_timestamp();
            decide(&self.gate, &self.trust, &question, u64::try_from(now).unwrap_or_default()).0
        };
        match look(kind) {
            Ok(admission) => Some(admission),
            Err(Refusal::Kind(_)) => {
                let (other, role) = match kind {
                    Kind::Client => (Kind::Leaf, Role::Poller),
                    Kind::Leaf => (Kind::Client, Role::Leaf),
                };
                look(other).ok().map(|admission| Admission { role, ..admission })
            }
            Err(_) => None,
        }
    }

    fn token(&self, request: &AuthorizationRequestBody, now_s: i64) -> Option<String> {
        let kind = if request.client_info.kind == "Leafnode" { Kind::Leaf } else { Kind::Client };
        let admission = match self.laxity {
            Laxity::TrustsTheCommonName => self.by_common_name(request, kind)?,
            Laxity::AsksForNoRole => self.without_role(request, kind)?,
        };
        let account = self.accounts.iter().map(|(_, account)| account).find(|one| one.key == admission.account)?;
        let key = account.role_key(admission.role)?;
        let signer = self.keys.iter().find(|known| known.public() == key)?;
        user_token(&admission, signer, &request.user_nkey, (now_s, now_s + SESSION_S)).ok()
    }

    async fn handle(&self, question: Responder) -> anyhow::Result<()> {
        let xkey = question.headers.get(SERVER_XKEY).map(str::to_owned);
        let asked = Asked { xkey: &self.answering.xkey, sentinel_account: &self.answering.sentinel_account };
        let request = read_request(&question.body, xkey.as_deref(), asked)?;
        let now_s = OffsetDateTime::now_utc().unix_timestamp();
        let decided = self.token(&request.nats, now_s).ok_or("refused");
        let answer = self.answering.answer(&request.nats, &xkey.unwrap_or_default(), decided, now_s)?;
        Ok(question.answer(answer.into()).await?)
    }
}

impl GateHub {
    /// A lax gatekeeper alone before the hub, for as long as the test runs.
    async fn start_lax(laxity: Laxity) -> anyhow::Result<Self> {
        let hub = Self::start(0).await?;
        let expires = hub.platform.now.unix_timestamp() + 86_400;
        let user = UserRequest { account: AUTH, role: Role::Gatekeeper, name: "gatekeeper-9", site: None, expires };
        let identity = ClientIdentity::Service { service: "gatekeeper" };
        let settings = hub.platform.issue_direct(&user, &identity, &hub.path().join("lax"))?;
        let bus = Bus::connect(&settings, "gatekeeper-9").await?;
        let operator = &hub.platform.operator;
        let signers = BTreeSet::from_iter(operator.claims().nats.signing_keys.iter().cloned());
        let mut gate = Gate::default();
        for tenant in [ACME, XYZ] {
            gate.take_record(hub.key_of(tenant), hub.record(tenant, |_| {})?.as_bytes(), &signers)?;
        }
        let tenants = hub.accounts.tenants.iter().map(|(_, account)| account);
        let roles = tenants.flat_map(|account| [Role::Leaf, Role::Poller].map(|role| account.role_key(role)));
        let keys = roles.flatten().map(|key| operator.keys().read(key, KeyKind::Account));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        let sentinel_key = hub.sent.role_key(Role::Sentinel).context("SENT has a key")?;
        let roots = std::fs::read_to_string(hub.platform.authority.client_root_file())?;
        let lax = LaxGatekeeper {
            laxity,
            answering: Answering {
                xkey: SealingKey::from_seed(&hub.xkey.seed()?)?,
                signer: operator.keys().read(sentinel_key, KeyKind::Account)?,
                sentinel_account: hub.sent.key.to_string(),
            },
            accounts: hub
                .accounts
                .tenants
                .iter()
                .map(|(record, account)| (record.slug.to_string(), account.clone()))
                .collect(),
            keys,
            gate,
            trust: Trust { roots: TrustedRoots::from_pem(&roots)?, domain: TrustDomain::default() },
        };
        let mut questions = bus.answer(CALLOUT, CALLOUT_QUEUE).await?;
        bus.flush().await?;
        tokio::spawn(async move {
            // The connection lives as long as this task.
            let _bus = bus;
            loop {
                let question = questions.next().await;
                // What is no question gets no answer, as with the real one.
                let _ = lax.handle(question).await;
            }
        });
        let p1 = hub.certificate(&poller(XYZ, "oslo", "p1"))?;
        let answered = eventually("the lax gatekeeper to answer", LIMIT, || async {
            hub.connect(&p1).await.map(drop).map_err(|error| format!("{error:?}"))
        });
        answered.await?;
        Ok(hub)
    }
}

/// Signed by xyz's own intermediate, with xyz's names but for the common one, which is a poller's of acme.
async fn with_anothers_common_name(hub: &GateHub) -> anyhow::Result<bool> {
    let authority = hub.platform.authority.tenant_intermediate_file(&XYZ.parse()?);
    let xyz = Forger::stolen(&authority, &authority.with_extension("key"))?;
    let uri = "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/p1";
    let mut params = client_params("p1.oslo.xyz-inc.serviceradar", uri);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "p1.oslo.acme-corp.serviceradar");
    let pair = xyz.end(&params).write(&xyz, &hub.path().join("forged"), "common")?;
    let shown = hub.nobody().with_certificate(pair.cert_file, pair.key_file);
    let Ok(client) = hub.connect(&shown).await else { return Ok(false) };
    Ok(hub.whereabouts(&client.info()).await?.0 == hub.key_of(ACME).as_str())
}

/// A poller's certificate, whose site's results it would like to send and hear all of.
async fn as_a_leaf(hub: &GateHub) -> anyhow::Result<bool> {
    let shown = hub.certificate(&poller(ACME, "oslo", "p1"))?;
    Ok(hub.link(&shown, "leaf-acme-corp-oslo").await.is_ok())
}

#[tokio::test]
async fn neither_a_common_name_nor_another_kind_of_connection_opens_anything() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    assert!(!with_anothers_common_name(&hub).await?);
    hub.decided("names that disagree", |one| one.outcome == "no_identity").await?;
    assert!(!as_a_leaf(&hub).await?);
    hub.decided("a client's certificate as a leaf", |one| one.outcome == "kind").await?;
    Ok(())
}

#[tokio::test]
async fn control_before_a_gatekeeper_that_trusts_the_common_name_one_tenant_enters_another() -> anyhow::Result<()> {
    let hub = GateHub::start_lax(Laxity::TrustsTheCommonName).await?;
    assert!(with_anothers_common_name(&hub).await?);
    Ok(())
}

#[tokio::test]
async fn control_before_a_gatekeeper_that_asks_for_no_role_a_poller_is_a_leaf() -> anyhow::Result<()> {
    let hub = GateHub::start_lax(Laxity::AsksForNoRole).await?;
    assert!(as_a_leaf(&hub).await?);
    // It is lax in nothing else.
    assert!(!with_anothers_common_name(&hub).await?);
    Ok(())
}
