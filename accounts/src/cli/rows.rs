//! How each kind of answer looks to people.

use bulkhead_bus::payload::{
    HistoryRow, Latencies, LiveRow, Outcome, PollerHistoryRow, PollerRow, Reason, ResultRow, StateRow, StatusRow,
    TenantRow, UptimeRow,
};

use super::show::{Row, age, lasting, latency, moment, percent};

pub(super) fn state(outcome: Outcome, reason: Option<Reason>) -> String {
    match reason {
        Some(reason) => format!("{} ({})", outcome.as_str(), reason.as_str()),
        None => outcome.as_str().to_owned(),
    }
}

impl Row for TenantRow {
    const HEADER: &'static [&'static str] = &["TENANT", "PLAN", "STATE", "ISOLATION", "SITES", "POLLERS", "ACCOUNT"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.to_string(),
            self.plan.clone(),
            self.state.clone(),
            self.isolation.clone(),
            self.sites.to_string(),
            self.pollers.to_string(),
            self.account.clone(),
        ]
    }
}

impl Row for PollerRow {
    const HEADER: &'static [&'static str] = &["TENANT", "SITE", "POLLER", "LAST BATCH", "BATCH KEY"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.to_string(),
            self.site.to_string(),
            self.poller.to_string(),
            self.last_batch_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", age(ms, now_ms))),
            self.batch_key.clone(),
        ]
    }
}

impl Row for ResultRow {
    const HEADER: &'static [&'static str] =
        &["SLOT (UTC)", "TENANT", "SITE", "POLLER", "CHECK", "KIND", "STATE", "LATENCY"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            moment(self.slot_ms, now_ms),
            self.tenant.to_string(),
            self.site.to_string(),
            self.poller.to_string(),
            self.check.to_string(),
            self.kind.as_str().to_owned(),
            state(self.outcome, self.reason) + if self.island { ", island" } else { "" },
            latency(self.latency_us),
        ]
    }
}

impl Row for StateRow {
    const HEADER: &'static [&'static str] =
        &["TENANT", "SITE", "POLLER", "CHECK", "KIND", "STATE", "SINCE", "LATENCY", "SLOT (UTC)"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.to_string(),
            self.site.to_string(),
            self.poller.to_string(),
            self.check.to_string(),
            self.kind.as_str().to_owned(),
            state(self.outcome, self.reason),
            age(self.since_ms, now_ms),
            latency(self.latency_us),
            moment(self.slot_ms, now_ms),
        ]
    }
}

impl Row for LiveRow {
    const HEADER: &'static [&'static str] = &["SEEN", "TENANT", "SITE", "POLLER", "CHECK", "KIND", "STATE", "LATENCY"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            format!("{} ago", age(self.received_ms, now_ms)),
            self.tenant.to_string(),
            self.site.to_string(),
            self.poller.to_string(),
            self.measured.check.to_string(),
            self.measured.kind.as_str().to_owned(),
            state(self.measured.outcome, self.measured.reason),
            latency(self.measured.latency_us),
        ]
    }
}

impl Row for StatusRow {
    const HEADER: &'static [&'static str] =
        &["TENANT", "PLAN", "STATE", "OK", "NOT OK", "RESULTS", "DEAD LETTERS", "NEWEST SLOT", "LIVE VIEW"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.to_string(),
            self.plan.clone(),
            self.state.clone(),
            self.checks_ok.to_string(),
            self.checks_not_ok.to_string(),
            self.results.to_string(),
            self.dead_letters.to_string(),
            self.newest_slot_ms.map_or_else(|| "none".to_owned(), |ms| format!("{} ago", age(ms, now_ms))),
            self.live_ms.map_or_else(|| "dark".to_owned(), |ms| format!("{} ago", age(ms, now_ms))),
        ]
    }
}

impl Row for HistoryRow {
    const HEADER: &'static [&'static str] =
        &["BEGINS (UTC)", "SITE", "RESULTS", "OK", "FAIL", "ERROR", "MISSED", "MIN", "P50", "P90", "P99", "MAX"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        let counts = [self.results, self.ok, self.fail, self.error, self.missed];
        let latencies = match self.latency {
            Some(Latencies { min_us, p50_us, p90_us, p99_us, max_us }) => {
                [min_us, p50_us, p90_us, p99_us, max_us].map(Some)
            }
            None => [None; 5],
        };
        let mut cells = vec![moment(self.begins_ms, now_ms), self.site.to_string()];
        cells.extend(counts.map(|count| count.to_string()));
        cells.extend(latencies.map(latency));
        cells
    }
}

impl Row for UptimeRow {
    const HEADER: &'static [&'static str] = &[
        "TENANT", "SITE", "CHECK", "UPTIME", "COVERAGE", "OK", "FAIL", "ERROR", "MISSED", "DOWN", "OUTAGES", "LONGEST",
    ];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let counts = [self.ok, self.fail, self.error, self.missed];
        let mut cells = vec![self.tenant.to_string(), self.site.to_string(), self.check.to_string()];
        cells.extend([percent(self.uptime_percent), percent(self.coverage_percent)]);
        cells.extend(counts.map(|count| count.to_string()));
        cells.extend([lasting(self.down_ms), self.outages.to_string(), lasting(self.longest_outage_ms)]);
        cells
    }
}

impl Row for PollerHistoryRow {
    const HEADER: &'static [&'static str] = &[
        "BEGINS (UTC)",
        "RESULTS",
        "ERROR",
        "MISSED",
        "ISLANDS",
        "ATTESTED",
        "FIRST SLOT",
        "LAST SLOT",
        "DELAY P50",
        "P99",
    ];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        let counts = [self.results, self.error, self.missed, self.islands];
        let mut cells = vec![moment(self.begins_ms, now_ms)];
        cells.extend(counts.map(|count| count.to_string()));
        cells.push(percent(Some(100.0 * self.attested as f64 / self.results.max(1) as f64)));
        cells.extend([moment(self.first_slot_ms, now_ms), moment(self.last_slot_ms, now_ms)]);
        cells.extend([self.delay_p50_ms, self.delay_p99_ms].map(|ms| lasting(Some(ms))));
        cells
    }
}
