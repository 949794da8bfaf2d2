//! `t.<T>.up.<site>.<poller>.rpc.dispatch.<verb>`: a poller asks for what it is to do. Only what it has signed, and only what
//! is its own.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::header::{self, Attestation};
use bulkhead_bus::payload::{
    AssignedCheck, AssignmentPage, DETAIL_BYTES_MAX, ErrorCode, FetchAssignment, FetchRuns, PAGE_BYTES_MOST,
    PAGE_CHECKS_MOST, Probe, ReplyError, ReportRun, RunOrder,
};
use bulkhead_bus::{AccountKey, AssignmentVerb, Audience, Claim, CoreSubject, PollerName, SiteName, Tenant};
use bulkhead_runtime::{Responder, refused};
use bulkhead_store::{Registered, StoreError, TenantTx};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::warn;

use super::{Desk, Undone, answer_rows, store};
use crate::members::ask_members;
use crate::metrics::RequestRefusal;
use crate::replays::Arrival;

const VERSION: u16 = 1;
const NOT_SIGNED: &str = "the request is not signed by a key that is known and good, or was made before";

type Who = (SiteName, PollerName);

/// A poller that has proved who it is.
struct Asked<T> {
    tenant: Tenant,
    body: T,
}

impl Desk {
    pub(super) async fn of_poller(
        &self,
        subject: CoreSubject,
        who: Who,
        verb: AssignmentVerb,
        request: &Responder,
    ) -> Result<Vec<u8>, Undone> {
        match verb {
            AssignmentVerb::FetchAssignment => {
                let asked: Asked<FetchAssignment> = self.attested(subject, &who, request).await?;
                self.fetch_assignment(&asked, &who).await
            }
            AssignmentVerb::FetchRuns => {
                let asked: Asked<FetchRuns> = self.attested(subject, &who, request).await?;
                self.fetch_runs(&asked, &who).await
            }
            AssignmentVerb::ReportRun => {
                let asked: Asked<ReportRun> = self.attested(subject, &who, request).await?;
                self.report_run(&asked, &who).await
            }
        }
    }

    fn refuse(&self, refusal: RequestRefusal, code: ErrorCode, who: &Who, message: &str) -> ReplyError {
        self.metrics.requests_refused.of(refusal).inc();
        warn!(refusal = ?refusal, site = %who.0, poller = %who.1, "request of a poller refused: {message}");
        // Whoever has no good signature learns nothing of what would be one.
        refused(code, if code == ErrorCode::NotSigned { NOT_SIGNED } else { message })
    }

    /// The request, if the poller of this name signed it with the key that is registered for it, and not before.
    async fn attested<T: Claim + Clone + DeserializeOwned>(
        &self,
        subject: CoreSubject,
        who: &Who,
        request: &Responder,
    ) -> Result<Asked<T>, Undone> {
        let (spoken, account) = (subject.subject.to_string(), subject.account.clone());
        let not_signed = |refusal, message: &str| self.refuse(refusal, ErrorCode::NotSigned, who, message);
        let attestation = header::verify_request(|name| request.headers.get(name), &spoken, &request.body);
        let attestation = match attestation {
            Ok(Some(attestation)) => attestation,
            Ok(None) => return Err(not_signed(RequestRefusal::NotSigned, "sign the request").into()),
            Err(error) => return Err(not_signed(RequestRefusal::NotSigned, &error.to_string()).into()),
        };
        let body: T = serde_json::from_slice(&request.body)
            .map_err(|error| self.refuse(RequestRefusal::Unreadable, ErrorCode::Invalid, who, &error.to_string()))?;
        let guarded = self.admit(subject, Audience::Tenants, body).inspect_err(|_| {
            self.metrics.requests_refused.of(RequestRefusal::Guard).inc();
        })?;
        let tenant =
            guarded.tenant().cloned().ok_or_else(|| refused(ErrorCode::Refused, "only tenants have pollers"))?;
        self.check_key(&tenant, who, &attestation).await?;
        let (key, sequence) = ((tenant.id, who.0.clone(), who.1.clone()), attestation.sequence);
        let arrival = match self.replays.note(key.clone(), sequence) {
            Arrival::Outlived if self.has_name(&account, who, sequence.boot).await? => {
                self.replays.note_again(key, sequence)
            }
            arrival @ (Arrival::New | Arrival::Replayed | Arrival::Outlived) => arrival,
        };
        match arrival {
            Arrival::New => Ok(Asked { tenant, body: guarded.body().clone() }),
            Arrival::Replayed => Err(not_signed(RequestRefusal::Replayed, "this request was made before").into()),
            Arrival::Outlived => {
                let message = "another process with this identity started later: stop";
                Err(self.refuse(RequestRefusal::Fenced, ErrorCode::Fenced, who, message).into())
            }
        }
    }

    /// Whether the lease of this name is held by the process of this start.
    async fn has_name(&self, account: &AccountKey, who: &Who, boot: u64) -> Result<bool, ReplyError> {
        let view = ask_members(&self.push, account).await;
        let row = view.rows.iter().find(|row| row.site == who.0 && row.name.poller() == Some(&who.1));
        match (row.and_then(|row| row.boot), view.unknown) {
            (Some(held), _) if held == boot => Ok(true),
            (_, None) => Ok(false),
            (_, Some(because)) => {
                Err(refused(ErrorCode::Unavailable, format!("nobody can tell now who has this name: {because}")))
            }
        }
    }

    /// What is refused is refused by what the database says now.
    async fn check_key(&self, tenant: &Tenant, who: &Who, attestation: &Attestation) -> Result<(), Undone> {
        let is_its = |registered: Option<&Registered>| matches!(registered, Some(Registered::Key(key)) if *key == attestation.key);
        if is_its(self.directory.batch_keys(tenant).await?.get(who)) {
            return Ok(());
        }
        let keys = self.directory.recent_batch_keys(tenant).await?;
        if is_its(keys.get(who)) {
            return Ok(());
        }
        let (refusal, message) = match keys.get(who) {
            Some(Registered::Revoked) => (RequestRefusal::Revoked, "this poller is revoked"),
            Some(Registered::Key(_) | Registered::Unreadable) | None => {
                (RequestRefusal::ForeignKey, "the key is not the one that is registered for this poller")
            }
        };
        Err(self.refuse(refusal, ErrorCode::NotSigned, who, message).into())
    }

    async fn fetch_assignment(&self, asked: &Asked<FetchAssignment>, who: &Who) -> Result<Vec<u8>, Undone> {
        let FetchAssignment { version, have, at, ref after, .. } = asked.body;
        check_version(version)?;
        let mut tx = self.store.begin(&asked.tenant).await?;
        let now = store::read_now(&mut tx, &asked.tenant).await?;
        // A database that was restored may be behind, and what ended long ago is not kept: then everything is told anew.
        let is_whole = have <= now.forgotten || have > now.generation;
        let have = if is_whole { 0 } else { have };
        let at = at.filter(|at| (have..=now.generation).contains(at)).unwrap_or(now.generation);
        let span = store::Span { have, at, now_ms: now.now_ms, after: after.as_ref() };
        let (rows, has_more) = store::read_assigned(&mut tx, &asked.tenant, who, &span).await?;
        let mut page = AssignmentPage { generation: at, is_whole, checks: vec![], ended: vec![], has_more };
        let sealed =
            self.sealed_for(&mut tx, &asked.tenant, who, rows.iter().filter_map(|row| row.probe.as_ref())).await?;
        let (mut bytes, mut names) = (0, BTreeSet::new());
        for (place, row) in rows.iter().enumerate() {
            let assigned = row.probe.clone().map(|probe| AssignedCheck {
                secrets: secrets_of(&probe, &sealed),
                probe,
                generation: row.generation,
                from_ms: row.from_ms,
                until_ms: row.until_ms,
                owed_from_ms: row.owed_from_ms,
            });
            bytes += assigned.as_ref().map_or(100, |check| serde_json::to_vec(check).map_or(0, |json| json.len() + 1));
            let is_new = place == 0 || rows[place - 1].check != row.check;
            // A page ends between checks, whatever comes of them.
            if is_new && !names.is_empty() && (names.len() >= PAGE_CHECKS_MOST || bytes > PAGE_BYTES_MOST) {
                page.has_more = true;
                break;
            }
            names.insert(&row.check);
            match assigned {
                Some(check) => page.checks.push(check),
                None => page.ended.push(row.as_ended()),
            }
        }
        Ok(answer_rows(vec![page]))
    }

    async fn sealed_for<'a>(
        &self,
        tx: &mut TenantTx,
        tenant: &Tenant,
        who: &Who,
        probes: impl Iterator<Item = &'a Probe>,
    ) -> Result<BTreeMap<String, String>, StoreError> {
        let mut names = BTreeSet::new();
        probes.for_each(|probe| probe.options.values().for_each(|option| note_secrets(option, &mut names)));
        if names.is_empty() { Ok(BTreeMap::new()) } else { store::read_sealed(tx, tenant, who, &names).await }
    }

    async fn fetch_runs(&self, asked: &Asked<FetchRuns>, who: &Who) -> Result<Vec<u8>, Undone> {
        check_version(asked.body.version)?;
        let mut tx = self.store.begin_writing(&asked.tenant).await?;
        let taken = store::take_runs(&mut tx, &asked.tenant, who).await?;
        let sealed = self.sealed_for(&mut tx, &asked.tenant, who, taken.iter().map(|run| &run.probe)).await?;
        tx.commit().await?;
        let order = |run: store::TakenRun| RunOrder {
            id: run.id,
            left_ms: run.left_ms,
            secrets: secrets_of(&run.probe, &sealed),
            probe: run.probe,
        };
        Ok(answer_rows(taken.into_iter().map(order).collect()))
    }

    async fn report_run(&self, asked: &Asked<ReportRun>, who: &Who) -> Result<Vec<u8>, Undone> {
        check_version(asked.body.version)?;
        let ReportRun { id, measured, .. } = &asked.body;
        if serde_json::to_vec(&measured.detail).map_or(usize::MAX, |bytes| bytes.len()) > DETAIL_BYTES_MAX {
            return Err(refused(ErrorCode::Invalid, "the detail is larger than may travel").into());
        }
        let mut tx = self.store.begin_writing(&asked.tenant).await?;
        store::finish_run(&mut tx, &asked.tenant, who, (*id, measured)).await?;
        tx.commit().await?;
        Ok(answer_rows::<()>(vec![]))
    }
}

fn check_version(version: u16) -> Result<(), ReplyError> {
    if version == VERSION {
        return Ok(());
    }
    Err(refused(ErrorCode::Invalid, format!("version {version} is not known: this release speaks {VERSION}")))
}

/// Names of the secrets in an option, however deep.
fn note_secrets(option: &Value, names: &mut BTreeSet<String>) {
    match option {
        Value::Object(fields) => {
            if let (1, Some(name)) = (fields.len(), fields.get("secret").and_then(Value::as_str)) {
                names.insert(name.to_owned());
            }
            fields.values().for_each(|field| note_secrets(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| note_secrets(item, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn secrets_of(probe: &Probe, sealed: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut names = BTreeSet::new();
    probe.options.values().for_each(|option| note_secrets(option, &mut names));
    names.into_iter().filter_map(|name| Some((name.clone(), sealed.get(&name)?.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_found_however_deep_and_only_where_they_are_named() {
        let mut names = BTreeSet::new();
        let option = json!({"headers": {"Authorization": {"secret": "token"}}, "list": [{"secret": "other"}],
            "secret": "no reference beside others", "x": {"secret": 7}});
        note_secrets(&option, &mut names);
        assert_eq!(names, BTreeSet::from(["other".to_owned(), "token".to_owned()]));
    }
}
