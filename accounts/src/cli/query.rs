//! Commands that ask core over the bus.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use bulkhead_bus::payload::{LiveRow, PollerRow, Query, ResultRow, StatusRow, TenantRow};
use bulkhead_bus::{CoreVerb, UserName};
use bulkhead_runtime::{Bus, now_ms};
use serde::de::DeserializeOwned;

use super::exit::{Failure, UNREACHABLE};
use super::show::{Row, json_lines, print_rows, table, write_lines};
use super::{Filter, Scope};
use crate::client::query;
use crate::profile::Profile;

/// A server of the hub that is just dying takes its gatekeeper with it.
const ADMITTED_LIMIT: Duration = Duration::from_secs(3);
const TAIL_EVERY: Duration = Duration::from_millis(500);
/// How far back a tail looks for what was stored late.
const TAIL_WINDOW_MS: i64 = 120_000;
/// How many shown rows a tail remembers, so that none is shown twice.
const TAIL_REMEMBERS: usize = 100_000;

/// What a tail shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Stored,
    Live,
}

pub(super) struct Session {
    pub(super) bus: Bus,
    pub(super) user: UserName,
}

impl Session {
    pub(super) async fn open(home: &Path, scope: &Scope) -> Result<Self, Failure> {
        let path = scope.profile.clone().unwrap_or_else(|| home.join("profiles").join("ops.toml"));
        let profile = Profile::read(&path).map_err(|error| Failure::invalid("profile", error))?;
        let bus = Bus::connect_admitted(&profile.bus_settings(), "bulkhead", ADMITTED_LIMIT).await?;
        Ok(Self { bus, user: profile.user })
    }

    pub(super) async fn ask<T: DeserializeOwned>(&self, verb: CoreVerb, asked: &Query) -> Result<Vec<T>, Failure> {
        Ok(query(&self.bus, &self.user, verb, asked).await?)
    }
}

pub(super) fn about(scope: &Scope) -> Query {
    Query { tenant: scope.tenant.as_ref().map(ToString::to_string), ..Query::default() }
}

fn about_results(filter: &Filter) -> Query {
    Query { site: filter.site.clone(), check: filter.check.clone(), ..about(&filter.scope) }
}

pub(super) async fn show<T: Row + DeserializeOwned>(
    home: &Path,
    scope: &Scope,
    (verb, asked): (CoreVerb, &Query),
    is_json: bool,
) -> Result<(), Failure> {
    let rows: Vec<T> = Session::open(home, scope).await?.ask(verb, asked).await?;
    print_rows(&rows, is_json, now_ms())
}

pub(super) async fn show_status(home: &Path, scope: &Scope, is_json: bool) -> Result<(), Failure> {
    show::<StatusRow>(home, scope, (CoreVerb::ShowStatus, &about(scope)), is_json).await
}

pub(super) async fn list_tenants(home: &Path, scope: &Scope, is_json: bool) -> Result<(), Failure> {
    show::<TenantRow>(home, scope, (CoreVerb::ListTenants, &about(scope)), is_json).await
}

pub(super) async fn list_pollers(home: &Path, scope: &Scope, is_json: bool) -> Result<(), Failure> {
    show::<PollerRow>(home, scope, (CoreVerb::ListPollers, &about(scope)), is_json).await
}

pub(super) async fn list_results(
    home: &Path,
    filter: &Filter,
    (minutes, limit): (u32, u32),
    is_json: bool,
) -> Result<(), Failure> {
    let now = now_ms();
    let asked =
        Query { since_ms: Some(now - i64::from(minutes) * 60_000), limit: Some(limit), ..about_results(filter) };
    let rows: Vec<ResultRow> = Session::open(home, &filter.scope).await?.ask(CoreVerb::ListResults, &asked).await?;
    print_rows(&rows, is_json, now)
}

/// The keys of rows that were shown, the oldest forgotten first.
#[derive(Default)]
struct Shown {
    keys: HashSet<String>,
    order: VecDeque<String>,
}

impl Shown {
    /// Whether `key` is new; from now on it is not.
    fn is_new(&mut self, key: String) -> bool {
        if !self.keys.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > TAIL_REMEMBERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }
}

fn print_tail<T: Row>(rows: &[T], is_json: bool, is_first: bool) -> Result<(), Failure> {
    if is_json {
        return write_lines(&json_lines(rows)?);
    }
    let text = table(rows, now_ms());
    let body = text.split_once('\n').map_or("", |(_, body)| body);
    write_lines(if is_first { &text } else { body })
}

/// What a tail goes on with from one look to the next.
#[derive(Default)]
struct Tail {
    shown: Shown,
    has_begun: bool,
}

impl Tail {
    fn print<T: Row>(&mut self, rows: &[T], is_json: bool) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        print_tail(rows, is_json, !std::mem::replace(&mut self.has_begun, true))
    }

    async fn look(&mut self, session: &Session, filter: &Filter, source: Source, is_json: bool) -> Result<(), Failure> {
        let asked = about_results(filter);
        match source {
            Source::Stored => {
                let since = now_ms() - TAIL_WINDOW_MS;
                let asked = Query { since_ms: Some(since), limit: Some(1_000), ..asked };
                let mut rows: Vec<ResultRow> = session.ask(CoreVerb::ListResults, &asked).await?;
                let key = |row: &ResultRow| format!("{} {} {} {}", row.tenant, row.check, row.site, row.slot_ms);
                rows.retain(|row| self.shown.is_new(key(row)));
                rows.sort_by_key(|row| row.slot_ms);
                self.print(&rows, is_json)
            }
            Source::Live => {
                let mut rows: Vec<LiveRow> = session.ask(CoreVerb::ListLive, &asked).await?;
                let key = |row: &LiveRow| {
                    format!("{} {} {} {}", row.tenant, row.measured.check, row.site, row.measured.slot_ms)
                };
                rows.retain(|row| self.shown.is_new(key(row)));
                rows.sort_by_key(|row| row.received_ms);
                self.print(&rows, is_json)
            }
        }
    }
}

pub(super) async fn tail_results(home: &Path, filter: &Filter, source: Source, is_json: bool) -> Result<(), Failure> {
    let mut session = Session::open(home, &filter.scope).await?;
    let mut tail = Tail::default();
    let mut ticks = tokio::time::interval(TAIL_EVERY);
    loop {
        ticks.tick().await;
        match tail.look(&session, filter, source, is_json).await {
            Ok(()) => {}
            Err(failure) if failure.code() == UNREACHABLE => {
                // Whoever was put out meanwhile hears that, and a hub that is back goes on with it.
                session = Session::open(home, &filter.scope).await?;
                tail.look(&session, filter, source, is_json).await?;
            }
            Err(failure) => return Err(failure),
        }
    }
}
