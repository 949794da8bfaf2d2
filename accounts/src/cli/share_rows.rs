//! How checks, who runs them, and who is there look to people.

use bulkhead_bus::payload::{
    AssignmentRow, ChangedCheck, CheckRow, GapRow, MemberEventRow, MemberRow, RunRow, SecretRow,
};

use super::member::state_words;
use super::rows::state;
use super::show::{Row, age, latency, moment};

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

impl Row for ChangedCheck {
    const HEADER: &'static [&'static str] = &["TENANT", "CHECK", "ACT", "REVISION"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.tenant.to_string(), self.check.to_string(), self.act.clone(), self.revision.to_string()]
    }
}

impl Row for CheckRow {
    const HEADER: &'static [&'static str] =
        &["TENANT", "CHECK", "TYPE", "TARGET", "INTERVAL", "WHERE", "VANTAGES", "STATE", "REVISION"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let (probe, definition) = (&self.definition.probe, &self.definition);
        let sites: Vec<String> = definition.sites.iter().map(ToString::to_string).collect();
        let labels: Vec<String> = definition.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        vec![
            self.tenant.to_string(),
            probe.name.to_string(),
            probe.kind.clone(),
            probe.target.clone(),
            format!("{}s", probe.interval_s),
            [sites, labels].concat().join(" "),
            self.vantages_assigned.to_string(),
            if definition.paused { "paused" } else { "on" }.to_owned(),
            self.revision.to_string(),
        ]
    }
}

impl Row for AssignmentRow {
    const HEADER: &'static [&'static str] = &["TENANT", "SITE", "CHECK", "POLLER", "SINCE (UTC)", "GENERATION"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.to_string(),
            self.site.to_string(),
            self.check.to_string(),
            self.poller.as_ref().map_or_else(|| "nobody can".to_owned(), ToString::to_string),
            moment(self.from_ms, now_ms),
            self.generation.to_string(),
        ]
    }
}

impl Row for RunRow {
    const HEADER: &'static [&'static str] = &["TENANT", "SITE", "POLLER", "CHECK", "STATE", "LATENCY", "DETAIL"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let detail: Vec<String> = self.detail.iter().map(|(name, value)| format!("{name}={value}")).collect();
        vec![
            self.tenant.to_string(),
            self.site.to_string(),
            or_dash(self.poller.as_ref()),
            self.check.to_string(),
            state(self.outcome, self.reason),
            latency(self.latency_us),
            detail.join(" "),
        ]
    }
}

impl Row for GapRow {
    const HEADER: &'static [&'static str] =
        &["TENANT", "SITE", "CHECK", "GAP", "FIRST SLOT (UTC)", "LAST SLOT (UTC)", "SLOTS", "POLLER"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        let kind = self.reason.map_or_else(
            || self.kind.as_str().to_owned(),
            |reason| format!("{} ({})", self.kind.as_str(), reason.as_str()),
        );
        vec![
            self.tenant.to_string(),
            self.site.to_string(),
            self.check.to_string(),
            kind,
            moment(self.first_slot_ms, now_ms),
            moment(self.last_slot_ms, now_ms),
            self.slots.to_string(),
            or_dash(self.poller.as_ref()),
        ]
    }
}

impl Row for MemberRow {
    const HEADER: &'static [&'static str] =
        &["TENANT", "SITE", "NAME", "STATE", "SINCE", "RELEASE", "CHECKS", "GENERATION", "LABELS"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        let info = self.info.as_ref();
        let labels = info.map(|info| info.labels.iter().map(|(name, value)| format!("{name}={value}")));
        vec![
            self.tenant.to_string(),
            self.site.to_string(),
            self.name.to_string(),
            state_words(self),
            self.since_ms.map_or_else(|| "-".to_owned(), |ms| age(ms, now_ms)),
            or_dash(info.map(|info| info.release.clone())),
            self.load.checks.to_string(),
            self.applied_generation.to_string(),
            labels.map_or_else(String::new, |labels| labels.collect::<Vec<_>>().join(" ")),
        ]
    }
}

impl Row for MemberEventRow {
    const HEADER: &'static [&'static str] = &["TIME (UTC)", "TENANT", "SITE", "NAME", "EVENT", "STATE", "REASON"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            moment(self.at_ms, now_ms),
            self.tenant.to_string(),
            self.site.to_string(),
            self.name.to_string(),
            self.event.clone(),
            or_dash(self.state.as_ref()),
            or_dash(self.reason.as_ref()),
        ]
    }
}

impl Row for SecretRow {
    const HEADER: &'static [&'static str] = &["TENANT", "SECRET", "SET BY", "SET (UTC)", "SEALED FOR"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.to_string(),
            self.name.to_string(),
            self.set_by.clone(),
            moment(self.set_ms, now_ms),
            self.pollers.join(" "),
        ]
    }
}
