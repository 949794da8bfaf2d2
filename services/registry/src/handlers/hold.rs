//! `hold_member` and `release_member`: a person takes a poller out of service, and gives it back.

use bulkhead_bus::payload::{ErrorCode, MemberHold, Reply, ReplyError};
use bulkhead_bus::{Audience, CoreSubject, MemberKey, RegistryVerb, Scope, TenantSubject, UserName};
use bulkhead_runtime::{encoded, now_ms, refused};
use bulkhead_store::{READ_LIMIT, within};
use tracing::info;

use super::{Answering, not_kept, unavailable};
use crate::document::{HeldDoc, InfoDoc};

/// Of the platform's people.
const PLATFORM: &str = "platform";
const REASON_BYTES_MOST: usize = 200;

impl Answering {
    /// Answers with the hold, or with no row when there is none any more.
    pub(super) async fn hold(
        &self,
        subject: CoreSubject,
        verb: RegistryVerb,
        asked: MemberHold,
    ) -> Result<Vec<u8>, ReplyError> {
        let TenantSubject::Registry { user, .. } = &subject.subject else {
            return Err(refused(ErrorCode::Invalid, "this is no question of a person"));
        };
        let user = user.clone();
        if asked
            .reason
            .as_ref()
            .is_some_and(|text| text.len() > REASON_BYTES_MOST || text.chars().any(char::is_control))
        {
            return Err(refused(ErrorCode::Invalid, format!("a reason is at most {REASON_BYTES_MOST} bytes of text")));
        }
        let snapshot = self.directory.snapshot();
        let guarded = snapshot.admit(subject.clone(), Audience::TenantsAndPlatform, asked);
        let guarded = guarded.map_err(|refusal| self.refuse(&subject, &refusal))?;
        let tenant =
            guarded.tenant().ok_or_else(|| refused(ErrorCode::Invalid, "name the tenant whose poller it is"))?;
        let account = snapshot.tenants().find(|(_, known)| known.id == tenant.id).map(|(account, _)| account.clone());
        let account = account.ok_or_else(|| refused(ErrorCode::NotFound, "there is no such tenant"))?;
        let (site, poller) = (guarded.body().site.clone(), guarded.body().poller.clone());
        let keys = within("read batch keys", READ_LIMIT, self.directory.batch_keys(tenant)).await;
        if !keys.map_err(|failure| unavailable(&failure))?.contains_key(&(site.clone(), poller.clone())) {
            return Err(refused(ErrorCode::NotFound, format!("there is no poller {site}/{poller}")));
        }
        let of = match guarded.scope() {
            Scope::Tenant(own) => own.slug.to_string(),
            Scope::Platform { .. } => PLATFORM.to_owned(),
        };
        let held = (verb == RegistryVerb::HoldMember).then(|| held_by(&user, of, guarded.body().reason.clone()));
        let key = MemberKey { account, site, name: poller.into() };
        let changed = self.keeper.change_info(&key, |info| {
            let is_there = info.is_some_and(|info| info.held.is_some());
            let is_wanted = is_there != held.is_some();
            is_wanted.then(|| InfoDoc { held: held.clone(), ..info.cloned().unwrap_or_default() })
        });
        changed.await.map_err(|failure| not_kept(&failure))?;
        let act = if held.is_some() { "held" } else { "released" };
        info!(tenant = %tenant.slug, %user, "{}/{} is {act}", key.site, key.name);
        Ok(encoded(&Reply::Rows(Vec::from_iter(held))))
    }
}

fn held_by(user: &UserName, of: String, reason: Option<String>) -> HeldDoc {
    HeldDoc { by: user.to_string(), of, reason, since_ms: now_ms() }
}
