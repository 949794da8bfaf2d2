//! `run_check`: a check is run once, now, at each of its vantages. The report comes to whichever replica the poller finds, so that
//! whoever waits hears of it from the database.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bulkhead_bus::payload::{
    CheckDefinition, ErrorCode, Measured, Outcome, Probe, RUN_DEADLINE_MS_MOST, ReplyError, RunCheck, RunRow,
};
use bulkhead_bus::{PollerName, SiteName, Tenant, TenantId, WakeUp};
use bulkhead_checks::read_definition;
use bulkhead_runtime::refused;
use bulkhead_store::StoreError;
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{Desk, Order, Undone, answer_rows, store};
use crate::change::{no_site, vantages_of};
use crate::members::{ask_members, best_ready, members_of};
use crate::metrics::RunEnd;
use crate::plan::{Kinds, Member, rendezvous};
use crate::planning::wake;

/// While nothing is heard the database is asked all the same.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who runs it at each vantage; nobody where nobody can.
type Chosen = BTreeMap<SiteName, Option<PollerName>>;

impl Desk {
    pub(super) async fn run_check(&self, order: Order<RunCheck>) -> Result<Vec<u8>, Undone> {
        let deadline_ms = order.body.deadline_ms;
        if !(1..=RUN_DEADLINE_MS_MOST).contains(&deadline_ms) {
            let message = format!("deadline_ms is {deadline_ms}: it must be 1 to {RUN_DEADLINE_MS_MOST}");
            return Err(refused(ErrorCode::Invalid, message).into());
        }
        let quota = self.store.quota(&order.tenant).await?;
        let most = quota.map_or(0, |quota| quota.on_demand_per_minute);
        let definition = self.definition_of(&order).await?;
        self.look_for_sites(&order, &definition).await?;
        let chosen = self.choose(&order, &definition).await?;
        let vantages = quota.map_or(0, |quota| usize::try_from(quota.vantages).unwrap_or(usize::MAX));
        if chosen.len() > vantages {
            let message = format!("{} vantages: the plan allows {vantages} at most", chosen.len());
            return Err(refused(ErrorCode::OverQuota, message).into());
        }
        let at: Vec<_> = chosen.iter().filter_map(|(site, who)| Some((site.clone(), who.clone()?))).collect();
        // Before it is ordered, so that no report is missed.
        let heard = self.runs.subscribe();
        let end = Instant::now() + Duration::from_millis(deadline_ms);
        let id = Uuid::new_v4();
        let ordered = store::Ordered { id, probe: &definition.probe, asked_by: &order.acting, deadline_ms, at: &at };
        let mut tx = self.store.begin_writing(&order.tenant).await?;
        store::lock_checks(&mut tx, &order.tenant).await?;
        let lately = store::count_runs(&mut tx, &order.tenant).await?;
        if lately >= most {
            let message = format!("the plan allows {most} runs on demand a minute, and there were {lately}: try again");
            return Err(refused(ErrorCode::OverQuota, message).into());
        }
        store::order_run(&mut tx, &order.tenant, &ordered).await?;
        tx.commit().await?;
        for (site, poller) in &at {
            wake(&self.push, &order.account, (site, poller), WakeUp::Run, &self.metrics).await;
        }
        let reports = self.await_reports(&order.tenant, id, (at.len(), end), heard).await?;
        Ok(answer_rows(self.rows(&order.tenant, &definition.probe, chosen, reports)))
    }

    async fn definition_of(&self, order: &Order<RunCheck>) -> Result<CheckDefinition, Undone> {
        match (&order.body.check, &order.body.definition) {
            (Some(name), None) => {
                let mut tx = self.store.begin(&order.tenant).await?;
                let there = crate::store::read_checks(&mut tx, &order.tenant).await?.remove(name);
                let missing = || refused(ErrorCode::NotFound, format!("check \"{name}\" is not there"));
                Ok(there.ok_or_else(missing)?.definition)
            }
            (None, Some(definition)) => {
                Ok(read_definition(definition).map_err(|lines| refused(ErrorCode::Invalid, lines.join("\n")))?)
            }
            (Some(_), Some(_)) | (None, None) => {
                Err(refused(ErrorCode::Invalid, "write either check or definition").into())
            }
        }
    }

    async fn look_for_sites(&self, order: &Order<RunCheck>, definition: &CheckDefinition) -> Result<(), Undone> {
        let mut tx = self.store.begin(&order.tenant).await?;
        let sites = store::read_sites(&mut tx, &order.tenant).await?;
        let unknown = order.body.sites.iter().chain(&definition.sites).find(|site| !sites.contains(*site));
        unknown.map_or(Ok(()), |site| Err(refused(ErrorCode::NotFound, no_site(site, &sites)).into()))
    }

    /// One who is ready at each vantage.
    async fn choose(&self, order: &Order<RunCheck>, definition: &CheckDefinition) -> Result<Chosen, Undone> {
        let view = ask_members(&self.push, &order.account).await;
        if let Some(because) = &view.unknown {
            return Err(refused(ErrorCode::Unavailable, format!("nobody can tell now who is there: {because}")).into());
        }
        let keys = self.directory.recent_batch_keys(&order.tenant).await?;
        let members = members_of(&view, &keys);
        let kinds = Kinds::named(&definition.probe.kind);
        let is_able = |member: &Member| member.is_able(kinds, &definition.labels);
        let key = definition.probe.name.as_str();
        let sites = vantages(order, definition, &members, is_able);
        let chosen: Chosen = sites
            .into_iter()
            .map(|site| {
                let who = best_ready(&members, &site, is_able, key).cloned();
                (site, who)
            })
            .collect();
        if chosen.values().all(Option::is_none) {
            return Err(nobody(definition, chosen.keys()).into());
        }
        Ok(chosen)
    }

    async fn await_reports(
        &self,
        tenant: &Tenant,
        id: Uuid,
        (expected, end): (usize, Instant),
        mut heard: broadcast::Receiver<TenantId>,
    ) -> Result<BTreeMap<String, Measured>, StoreError> {
        loop {
            let mut tx = self.store.begin(tenant).await?;
            let reports = store::read_reports(&mut tx, tenant, id).await?;
            drop(tx);
            if reports.len() >= expected || Instant::now() >= end {
                return Ok(reports);
            }
            let look_at = end.min(Instant::now() + LOOK_EVERY);
            let is_told = async {
                loop {
                    match heard.recv().await {
                        Ok(whose) if whose != tenant.id => {}
                        // Of those that were passed over one may be ours.
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                    }
                }
            };
            // Passing the time is as good as being told.
            let _ = timeout_at(look_at, is_told).await;
        }
    }

    fn rows(
        &self,
        tenant: &Tenant,
        probe: &Probe,
        chosen: Chosen,
        mut reports: BTreeMap<String, Measured>,
    ) -> Vec<RunRow> {
        let row = |(site, poller): (SiteName, Option<PollerName>)| {
            let report = reports.remove(site.as_str());
            self.metrics.runs.of(if report.is_some() { RunEnd::Reported } else { RunEnd::Missed }).inc();
            let because =
                if poller.is_some() { "no report until the deadline" } else { "no poller is ready to run it" };
            let missed = || BTreeMap::from([("because".to_owned(), because.into())]);
            RunRow {
                tenant: tenant.slug.clone(),
                site,
                poller,
                check: probe.name.clone(),
                outcome: report.as_ref().map_or(Outcome::Missed, |report| report.outcome),
                reason: report.as_ref().and_then(|report| report.reason),
                latency_us: report.as_ref().and_then(|report| report.latency_us),
                detail: report.map_or_else(missed, |report| report.detail),
            }
        };
        chosen.into_iter().map(row).collect()
    }
}

fn nobody<'a>(definition: &CheckDefinition, sites: impl Iterator<Item = &'a SiteName>) -> ReplyError {
    let sites: Vec<&str> = sites.map(SiteName::as_str).collect();
    let at = if sites.is_empty() { "with these labels".to_owned() } else { format!("at {}", sites.join(", ")) };
    refused(ErrorCode::Unavailable, format!("no poller {at} is ready to run {} now", definition.probe.kind))
}

/// The sites that were asked for, or those of the definition, the ones with somebody who can first.
fn vantages(
    order: &Order<RunCheck>,
    definition: &CheckDefinition,
    members: &[Member],
    is_able: impl Fn(&Member) -> bool,
) -> Vec<SiteName> {
    if !order.body.sites.is_empty() {
        let sites: BTreeSet<&SiteName> = order.body.sites.iter().collect();
        return sites.into_iter().cloned().collect();
    }
    let key = definition.probe.name.as_str();
    let able: BTreeSet<&SiteName> = members
        .iter()
        .filter(|member| is_able(member) && best_ready(members, &member.site, &is_able, key).is_some())
        .map(|member| &member.site)
        .collect();
    let (able, others): (Vec<&SiteName>, Vec<&SiteName>) = if definition.sites.is_empty() {
        (able.into_iter().collect(), vec![])
    } else {
        definition.sites.iter().partition(|site| able.contains(site))
    };
    let count = usize::try_from(vantages_of(definition)).unwrap_or(usize::MAX);
    let first = rendezvous(key, &able, |site| site.as_str(), count);
    let first: Vec<SiteName> = first.into_iter().map(|site| (*site).clone()).collect();
    let rest = count.saturating_sub(first.len());
    first.into_iter().chain(others.into_iter().take(rest).cloned()).collect()
}
