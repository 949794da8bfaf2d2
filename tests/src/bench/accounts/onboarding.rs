//! `tenant add`, by the way that the command takes and by the command itself, and a new tenant's first batch.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_accounts::certificates::ClientIdentity;
use bulkhead_accounts::plan::{PlanChoice, PlanName};
use bulkhead_accounts::tenancy::{IfThere, NewTenant, SitePath, TenantRecord};
use bulkhead_accounts::up::tenant_row;
use bulkhead_bus::Tenant;
use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{BATCH_VERSION, ResultBatch};
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{Identity, RawLeaf, header_block};
use nkeys::KeyPair;
use tokio::time::interval;

use super::super::load::rows;
use super::times::Times;
use super::town::Town;

const SITE: &str = "site";
const POLLER: &str = "p1";
const ROWS: usize = 20;
const LOOK_EVERY: Duration = Duration::from_millis(1);
const COMMIT_LIMIT: Duration = Duration::from_secs(30);

/// Onboardings at one size of the platform.
#[derive(Debug, Clone)]
pub struct Onboarding {
    /// From the order to the account's being in force on the hub, proved, and in the database.
    pub added: Times,
    /// Each step by what is announced, in their order; medians of what it took.
    pub steps: Vec<(String, Times)>,
    /// The live import, which comes afterwards and is coalesced where many come at once; here it is each tenant's own.
    pub live: Times,
    /// From sending the first batch to its rows being visible in the database.
    pub first_batch: Times,
    /// Onboarding and first batch together: until results flow.
    pub until_results: Times,
    /// `bulkhead tenant add` as a program, without the live import.
    pub program: Times,
}

/// Onboards `samples` tenants, and `runs` more by the program.
pub(super) async fn measure(town: &mut Town, samples: usize, runs: usize) -> anyhow::Result<Onboarding> {
    let (mut added, mut live, mut first_batch) = (Vec::new(), Vec::new(), Vec::new());
    let mut steps: Vec<(String, Vec<Duration>)> = Vec::new();
    for _ in 0..samples {
        let (record, took, announced) = add(town).await?;
        for (step, took) in announced {
            match steps.iter_mut().find(|(known, _)| *known == step) {
                Some((_, times)) => times.push(took),
                None => steps.push((step, vec![took])),
            }
        }
        let began = Instant::now();
        town.tenancy.reconcile_live(Some(&town.links)).await.context("import live streams")?;
        live.push(began.elapsed());
        let flowed = send_first_batch(town, &record).await;
        first_batch.push(flowed.with_context(|| format!("first batch of {}", record.slug))?);
        added.push(took);
    }
    let mut program = Vec::new();
    for _ in 0..runs {
        program.push(add_by_program(town).await?);
    }
    let until_results = added.iter().zip(&first_batch).map(|(added, batch)| *added + *batch).collect();
    let steps = steps.into_iter().map(|(step, times)| (step, times.into_iter().collect())).collect();
    Ok(Onboarding {
        added: added.into_iter().collect(),
        steps,
        live: live.into_iter().collect(),
        first_batch: first_batch.into_iter().collect(),
        until_results,
        program: program.into_iter().collect(),
    })
}

pub(super) type Announced = Vec<(String, Duration)>;

pub(super) async fn add(town: &mut Town) -> anyhow::Result<(TenantRecord, Duration, Announced)> {
    let order = NewTenant {
        slug: town.next_slug()?,
        display_name: String::new(),
        plan: Some(PlanChoice::Newest(PlanName::Pro)),
        if_there: IfThere::Refuse,
    };
    town.set_clock();
    let heard: RefCell<Vec<(String, Instant)>> = RefCell::default();
    let announce = |step: &str| heard.borrow_mut().push((step.to_owned(), Instant::now()));
    let began = Instant::now();
    let lock = town.tenancy.lock().context("lock the platform")?;
    let onboarded = town.tenancy.add_tenant(&town.links, &order, &announce).await.context("add a tenant")?;
    drop(lock);
    let took = began.elapsed();
    let mut heard = heard.into_inner();
    heard.insert(0, ("writing down that it begins".to_owned(), began));
    let ends = heard.iter().skip(1).map(|(_, at)| *at).chain([began + took]);
    let announced = heard.iter().zip(ends).map(|((step, at), end)| (step.clone(), end.duration_since(*at))).collect();
    Ok((onboarded.record, took, announced))
}

async fn add_by_program(town: &mut Town) -> anyhow::Result<Duration> {
    let slug = town.next_slug()?;
    let began = Instant::now();
    let output = town.deployment.bulkhead(&["tenant", "add", slug.as_str(), "--plan", "pro", "--defer-live"]).await?;
    let took = began.elapsed();
    ensure!(output.status.success(), "tenant add {slug}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

/// A leaf and a poller of the new tenant, whose making is not measured, send one batch.
async fn send_first_batch(town: &Town, record: &TenantRecord) -> anyhow::Result<Duration> {
    let tenant = tenant_row(record, &town.tenancy.plan_of(record)?);
    let key = KeyPair::new_user();
    register(town, &tenant, &key).await?;
    let leaf = connect_leaf(town, record).await?;
    let results = rows(ROWS, now_ms())?;
    let batch = ResultBatch {
        version: BATCH_VERSION,
        tenant: Some(record.slug.to_string()),
        site: SITE.parse()?,
        poller: POLLER.parse()?,
        results,
    };
    let body = serde_json::to_vec(&batch).context("encode a batch")?;
    let sequence = Sequence { boot: 1, number: 1 };
    let signature = header::encode_signature(&key.sign(&header::signed_bytes(sequence, &body)).context("sign")?);
    let (public, sequence) = (key.public_key(), sequence.to_string());
    let headers =
        header_block(&[(header::SIGNATURE, &signature), (header::KEY, &public), (header::SEQUENCE, &sequence)]);
    let began = Instant::now();
    let inbox = format!("_INBOX_{SITE}.first");
    leaf.lmsg_with_headers(&format!("up.{SITE}.fwd.results"), Some(&inbox), Some(&headers), &body).await?;
    wait_for_rows(town, &tenant, began).await?;
    Ok(began.elapsed())
}

async fn register(town: &Town, tenant: &Tenant, key: &KeyPair) -> anyhow::Result<()> {
    let database = town.links.database().await?.context("a deployment has a database")?;
    let (site, poller) = (SITE.parse()?, POLLER.parse()?);
    database.put_site(tenant, &site).await.context("write a site")?;
    database.put_poller(tenant, &site, &poller, &key.public_key().parse()?).await.context("write a poller")
}

async fn connect_leaf(town: &Town, record: &TenantRecord) -> anyhow::Result<RawLeaf> {
    let path = SitePath { tenant: record.slug.clone(), site: SITE.parse()? };
    town.tenancy.add_site(&town.links, &path).await.context("add a site")?;
    let folder = town.deployment.home().join("bench").join(record.slug.as_str());
    let identity = ClientIdentity::Leaf { tenant: path.tenant, site: path.site };
    let issued = town.tenancy.platform.let_in(&identity, "leaf", &folder, time::Duration::days(1));
    let (settings, _) = issued.context("issue a leaf")?;
    let identity =
        Identity::trusting(settings.tls.ca_file).with_certificate(settings.tls.cert_file, settings.tls.key_file);
    let name = format!("leaf-{}-{SITE}", record.slug);
    // The gatekeepers hear of the site in a moment.
    let leaf = eventually("a leaf that is let in", COMMIT_LIMIT, || async {
        let leaf = RawLeaf::connect(&town.deployment.hub_for_leaves(), &identity, &name).await;
        leaf.map_err(|error| format!("{error:#}"))
    });
    let leaf = leaf.await.context("connect a leaf")?;
    leaf.subscribe(&format!("_INBOX_{SITE}.>")).await?;
    leaf.flush().await?;
    Ok(leaf)
}

async fn wait_for_rows(town: &Town, tenant: &Tenant, began: Instant) -> anyhow::Result<()> {
    let sql = "select count(*) from shared.result where tenant_id = $1";
    let mut looks = interval(LOOK_EVERY);
    let mut stored: i64 = 0;
    while began.elapsed() < COMMIT_LIMIT {
        looks.tick().await;
        stored = sqlx::query_scalar(sql).bind(tenant.id.as_uuid()).fetch_one(&town.witness).await?;
        if usize::try_from(stored).is_ok_and(|stored| stored >= ROWS) {
            return Ok(());
        }
    }
    anyhow::bail!("{stored} of {ROWS} rows are stored")
}

/// Medians by step, for the table that says where the time goes.
pub(super) fn step_medians(onboarding: &Onboarding) -> BTreeMap<&str, Duration> {
    onboarding.steps.iter().map(|(step, times)| (step.as_str(), times.median())).collect()
}
