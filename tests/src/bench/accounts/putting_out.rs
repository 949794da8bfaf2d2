//! From putting a poller, a site or a tenant out to its end: the last batch that core takes, and the ends of connections.
//!
//! Whoever is put out lives on a thread of its own, because putting out keeps the thread busy that it runs on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_accounts::profile::Profile;
use bulkhead_accounts::tenancy::{BundleOrder, NewPerson, PersonRole, PollerPath, SiteOrder, SitePath, TenantRecord};
use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{BATCH_VERSION, ResultBatch};
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_store::WithPollers;
use bulkhead_testkit::{Endpoint, Identity, RawClient, RawLeaf, header_block};
use nkeys::KeyPair;
use sqlx::PgPool;
use tokio::time::interval;

use super::super::load::rows;
use super::onboarding;
use super::revocation::identity;
use super::times::Times;
use super::town::Town;

const LIMIT: Duration = Duration::from_secs(60);
const SITE: &str = "site";
const POLLER: &str = "p1";
/// The pace of the poller that is put out, and so how exactly its end is known.
const BATCH_EVERY: Duration = Duration::from_millis(5);
/// What was taken by then was taken: core has a second.
const QUIET: Duration = Duration::from_millis(1_500);

/// Each from calling to the end of it.
#[derive(Debug, Clone)]
pub struct PuttingOut {
    /// `poller revoke`, until core stores no batch that its leaf passes on.
    pub pollers: Times,
    /// `site remove`, until its leaf's link is closed.
    pub sites: Times,
    /// `tenant suspend`, until a person's connection is closed.
    pub tenants: Times,
}

/// Puts out `count` of each.
pub(super) async fn measure(town: &mut Town, count: usize) -> anyhow::Result<PuttingOut> {
    let (mut pollers, mut sites, mut tenants) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let record = onboarding::add(town).await?.0;
        let site = Site::start(town, &record).await?;
        pollers.push(site.revoke_poller(town).await.context("revoke a poller")?);
        sites.push(site.remove(town).await.context("remove a site")?);
        tenants.push(suspend(town, &record).await.context("suspend a tenant")?);
    }
    let times = |all: Vec<Duration>| all.into_iter().collect();
    Ok(PuttingOut { pollers: times(pollers), sites: times(sites), tenants: times(tenants) })
}

async fn suspend(town: &mut Town, record: &TenantRecord) -> anyhow::Result<Duration> {
    let folder = town.deployment.home().join("bench").join(record.slug.as_str()).join("ann");
    let person = NewPerson { name: "ann".parse()?, folder, days: 1 };
    town.set_clock();
    let profile = town.tenancy.add_person(&town.links, &record.slug, &person, PersonRole::Viewer).await;
    let identity = identity(&Profile::read(&profile.context("add a person")?)?);
    let hub = town.deployment.hub();
    let ended = on_a_thread(move || async move {
        let client = RawClient::connect(&hub, &identity).await.context("connect a person")?;
        Ok(async move { client.wait_closed(LIMIT).await.map(drop) })
    })?;
    town.set_clock();
    let began = Instant::now();
    town.tenancy.suspend(&town.links, &record.slug).await?;
    let at = ended.recv_timeout(LIMIT).context("the person is still connected")??;
    Ok(at.duration_since(began))
}

/// Says when `connect` has connected, and then when what it holds has ended.
fn on_a_thread<Connecting, Holding>(
    connect: impl FnOnce() -> Connecting + Send + 'static,
) -> anyhow::Result<Receiver<anyhow::Result<Instant>>>
where
    Connecting: Future<Output = anyhow::Result<Holding>>,
    Holding: Future<Output = anyhow::Result<()>>,
{
    let (noting, ends) = channel();
    let (ready, is_ready) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime");
        let outcome = runtime.and_then(|runtime| {
            runtime.block_on(async {
                let holding = connect().await?;
                let _ = ready.send(());
                holding.await
            })
        });
        // Nobody listens any more once the benchmark is over.
        let _ = noting.send(outcome.map(|()| Instant::now()));
    });
    if is_ready.recv_timeout(LIMIT).is_err() {
        ends.recv_timeout(LIMIT).context("nobody is connected")??;
    }
    Ok(ends)
}

/// A site with one poller, whose leaf passes on a batch every few milliseconds.
struct Site {
    path: SitePath,
    tenant: uuid::Uuid,
    witness: PgPool,
    is_quiet: Arc<AtomicBool>,
    ended: Receiver<anyhow::Result<Instant>>,
}

impl Site {
    async fn start(town: &mut Town, record: &TenantRecord) -> anyhow::Result<Self> {
        let path = SitePath { tenant: record.slug.clone(), site: SITE.parse()? };
        let poller = PollerPath { tenant: record.slug.clone(), site: SITE.parse()?, poller: POLLER.parse()? };
        let to = town.deployment.home().join("bench").join(record.slug.as_str()).join("bundle");
        town.set_clock();
        let order = BundleOrder { to, site: SiteOrder::default() };
        let folder = town.tenancy.add_poller(&town.links, &poller, &order).await.context("add a poller")?.folder;
        let seed = std::fs::read_to_string(folder.join("pollers").join(POLLER).join("batch.nk"))?;
        let key = KeyPair::from_seed(seed.trim()).context("read the poller's key")?;
        let tls = folder.join("tls");
        let root = town.tenancy.platform.authority.server_root_file();
        let identity = Identity::trusting(root).with_certificate(tls.join("leaf.crt"), tls.join("leaf.key"));
        let is_quiet = Arc::new(AtomicBool::new(false));
        let (hub, name, quiet) =
            (town.deployment.hub_for_leaves(), format!("leaf-{}-{SITE}", record.slug), Arc::clone(&is_quiet));
        let slug = record.slug.to_string();
        let ended = on_a_thread(move || async move {
            let leaf = connect(&hub, &identity, &name).await?;
            Ok(async move { send_until_closed(&leaf, &key, &slug, &quiet).await })
        })?;
        let this = Self { path, tenant: record.id, witness: town.witness.clone(), is_quiet, ended };
        let flowing = eventually("results of the poller", LIMIT, || async {
            match this.newest_slot().await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err("none".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        flowing.await?;
        Ok(this)
    }

    /// When the newest batch that was stored was sent, unix milliseconds.
    async fn newest_slot(&self) -> anyhow::Result<Option<i64>> {
        let sql = "select (extract(epoch from max(slot)) * 1000)::bigint from shared.result where tenant_id = $1";
        Ok(sqlx::query_scalar(sql).bind(self.tenant).fetch_one(&self.witness).await?)
    }

    async fn revoke_poller(&self, town: &mut Town) -> anyhow::Result<Duration> {
        let poller =
            PollerPath { tenant: self.path.tenant.clone(), site: self.path.site.clone(), poller: POLLER.parse()? };
        town.set_clock();
        let began_ms = now_ms();
        town.tenancy.revoke_poller(&town.links, &poller).await?;
        let mut quiet = interval(QUIET);
        quiet.tick().await;
        quiet.tick().await;
        self.is_quiet.store(true, Ordering::SeqCst);
        ensure!(self.ended.try_recv().is_err(), "the leaf is gone, so that nothing more was refused");
        let newest = self.newest_slot().await?.context("nothing was ever stored")?;
        ensure!(newest < began_ms + i64::try_from(QUIET.as_millis())? - 200, "core stores what it signs still");
        Ok(Duration::from_millis(u64::try_from(newest - began_ms).unwrap_or(0)))
    }

    async fn remove(self, town: &mut Town) -> anyhow::Result<Duration> {
        town.set_clock();
        let began = Instant::now();
        town.tenancy.remove_site(&town.links, &self.path, WithPollers::Remove).await?;
        let at = self.ended.recv_timeout(LIMIT).context("the leaf is still linked")??;
        Ok(at.duration_since(began))
    }
}

async fn connect(hub: &Endpoint, identity: &Identity, name: &str) -> anyhow::Result<RawLeaf> {
    // The gatekeepers hear of the site in a moment.
    let leaf = eventually("a leaf that is let in", LIMIT, || async {
        RawLeaf::connect(hub, identity, name).await.map_err(|error| format!("{error:#}"))
    });
    leaf.await.context("connect a leaf")
}

async fn send_until_closed(leaf: &RawLeaf, key: &KeyPair, slug: &str, is_quiet: &AtomicBool) -> anyhow::Result<()> {
    let mut ticks = interval(BATCH_EVERY);
    let mut number = 0;
    while !is_quiet.load(Ordering::SeqCst) && !leaf.is_closed() {
        ticks.tick().await;
        number += 1;
        let batch = ResultBatch {
            version: BATCH_VERSION,
            tenant: Some(slug.to_owned()),
            site: SITE.parse()?,
            poller: POLLER.parse()?,
            results: rows(1, now_ms())?,
        };
        let body = serde_json::to_vec(&batch).context("encode a batch")?;
        let sequence = Sequence { boot: 1, number };
        let signature = header::encode_signature(&key.sign(&header::signed_bytes(sequence, &body)).context("sign")?);
        let (public, sequence) = (key.public_key(), sequence.to_string());
        let headers =
            header_block(&[(header::SIGNATURE, &signature), (header::KEY, &public), (header::SEQUENCE, &sequence)]);
        let subject = format!("up.{SITE}.fwd.results");
        leaf.lmsg_with_headers(&subject, None, Some(&headers), &body).await?;
    }
    leaf.wait_closed(LIMIT).await.map(drop)
}
