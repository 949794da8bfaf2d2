//! `t.<T>.up._user.<user>.rpc.registry.<verb>` and `t.<T>.svc.registry.list_members`: who is there, for people and services.
//!
//! What this replica cannot tell it says to be unknown; nobody is missing from an answer for that.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_bus::payload::{
    ErrorCode, LIST_LIMIT_MAX, MemberHold, MemberPage, MemberPageQuery, MemberQuery, MemberRow, Pick, Reply, ReplyError,
};
use bulkhead_bus::{
    AccountKey, Audience, CoreSubject, Guarded, MemberName, RegistryVerb, Scope, SiteName, Tenant, TenantSubject,
};
use bulkhead_runtime::{encoded, fitting, refused};
use bulkhead_store::{BatchKeys, READ_LIMIT, Registered, within};

use super::{Answering, parsed, unavailable};
use crate::members::Member;
use crate::pick::{is_meant, pick};
use crate::store::list_events;
use crate::trust::Standing;

/// How long the database may keep a question waiting for who is registered.
const PATIENCE: Duration = Duration::from_millis(500);
const LIMIT_DEFAULT: u32 = 100;
/// Members of one page for services.
const PAGE_MEMBERS_MOST: usize = 500;

type Place = (SiteName, MemberName);

/// One of those who were found.
pub(super) struct Found {
    pub(super) row: MemberRow,
    /// The revision of the newest news of it, renewals aside.
    pub(super) news: u64,
}

pub(super) fn rows_of(found: Vec<Found>) -> Vec<MemberRow> {
    found.into_iter().map(|found| found.row).collect()
}

impl Answering {
    pub(super) async fn question(&self, subject: CoreSubject, body: &[u8]) -> Result<Vec<u8>, ReplyError> {
        if let TenantSubject::Service { .. } = subject.subject {
            return self.page(&subject, &parsed(body)?).await;
        }
        let TenantSubject::Registry { verb, .. } = subject.subject else {
            return Err(refused(ErrorCode::Invalid, "this is no question of a person"));
        };
        match verb {
            RegistryVerb::HoldMember | RegistryVerb::ReleaseMember => {
                let asked: MemberHold =
                    serde_json::from_slice(body).map_err(|error| refused(ErrorCode::Invalid, error))?;
                self.hold(subject, verb, asked).await
            }
            RegistryVerb::ListMembers | RegistryVerb::SelectMembers | RegistryVerb::WatchMembers => {
                let guarded = self.admit(subject, parsed(body)?)?;
                self.members(&guarded, verb).await
            }
            RegistryVerb::ListMemberEvents => {
                let guarded = self.admit(subject, parsed(body)?)?;
                self.events(&guarded).await
            }
        }
    }

    pub(super) fn admit(&self, subject: CoreSubject, asked: MemberQuery) -> Result<Guarded<MemberQuery>, ReplyError> {
        let admitted = self.directory.snapshot().admit(subject.clone(), Audience::TenantsAndPlatform, asked);
        admitted.map_err(|refusal| self.refuse(&subject, &refusal))
    }

    /// Whom the answer is about, by slug: the sender, the platform's target, or everybody for the platform.
    fn tenants(&self, scope: &Scope) -> Vec<(AccountKey, Tenant)> {
        let is_wanted = |tenant: &Tenant| match scope {
            Scope::Tenant(own) | Scope::Platform { target: Some(own) } => own.id == tenant.id,
            Scope::Platform { target: None } => tenant.state.is_open(),
        };
        let snapshot = self.directory.snapshot();
        let all = snapshot.tenants().filter(|(_, tenant)| is_wanted(tenant));
        let mut tenants: Vec<_> = all.map(|(key, tenant)| (key.clone(), tenant.clone())).collect();
        tenants.sort_by(|(_, a), (_, b)| a.slug.cmp(&b.slug));
        tenants
    }

    /// Everybody of a tenant, by name: whoever the buckets know of and is still registered, and who never reported.
    async fn everybody(&self, account: &AccountKey, tenant: &Tenant) -> Result<Vec<Found>, ReplyError> {
        let keys = self.directory.keys_or_last(tenant, PATIENCE).await;
        let standing = self.view.standing();
        let keys = match keys {
            Ok(keys) => Some(keys),
            // Whoever never reported is missing then, and whoever did is not.
            Err(_) if !matches!(standing, Standing::Blind(_)) => None,
            Err(failure) => return Err(unavailable(&failure)),
        };
        Ok(self.found(account, tenant, keys.as_deref()))
    }

    fn found(&self, account: &AccountKey, tenant: &Tenant, keys: Option<&BatchKeys>) -> Vec<Found> {
        let is_registered = |(site, name): &Place| match (keys, name) {
            (None, _) => true,
            (Some(keys), MemberName::Poller(poller)) => keys.contains_key(&(site.clone(), poller.clone())),
            (Some(keys), MemberName::Leaf) => keys.keys().any(|(own, _)| own == site),
        };
        self.view.look(|members, standing, _| {
            let mut found: BTreeMap<Place, Member> = BTreeMap::new();
            for (place, member) in members.of(account).into_iter().flatten() {
                if is_registered(place) {
                    found.insert(place.clone(), member.clone());
                }
            }
            for ((site, poller), registered) in keys.into_iter().flatten() {
                if *registered != Registered::Revoked {
                    found.entry((site.clone(), poller.clone().into())).or_default();
                }
            }
            let one = |((site, name), member): (&Place, &Member)| Found {
                row: member.row(&tenant.slug, (site, name), standing),
                news: member.news_revision,
            };
            found.iter().map(one).collect()
        })
    }

    /// Those whom a query means, of all tenants that it may ask about.
    pub(super) async fn meant(&self, guarded: &Guarded<MemberQuery>) -> Result<Vec<Found>, ReplyError> {
        let mut rows = Vec::new();
        for (account, tenant) in self.tenants(guarded.scope()) {
            let everybody = self.everybody(&account, &tenant).await?;
            rows.extend(everybody.into_iter().filter(|found| is_meant(guarded.body(), &found.row)));
        }
        Ok(rows)
    }

    async fn members(&self, guarded: &Guarded<MemberQuery>, verb: RegistryVerb) -> Result<Vec<u8>, ReplyError> {
        let asked = guarded.body();
        let mut rows = rows_of(self.meant(guarded).await?);
        if verb == RegistryVerb::SelectMembers {
            // Who chooses goes by what it is told: nobody is chosen blindly.
            if let Standing::Blind(because) = self.view.standing() {
                return Err(refused(ErrorCode::Unavailable, format!("nobody can be chosen now: {because}")));
            }
            let is_wanted = |row: &MemberRow| asked.states.is_empty() || asked.states.contains(&row.state);
            rows.retain(is_wanted);
            rows = pick(rows, asked.pick.as_ref().unwrap_or(&Pick::All));
        }
        let limit = asked.limit.unwrap_or(LIST_LIMIT_MAX).clamp(1, LIST_LIMIT_MAX);
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(self.rows(rows))
    }

    async fn events(&self, guarded: &Guarded<MemberQuery>) -> Result<Vec<u8>, ReplyError> {
        let asked = guarded.body();
        let limit = asked.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIST_LIMIT_MAX);
        let mut rows = Vec::new();
        for (_, tenant) in self.tenants(guarded.scope()) {
            let read = within("list events of members", READ_LIMIT, async {
                let mut tx = self.store.begin(&tenant).await?;
                list_events(&mut tx, &tenant, asked, limit).await
            });
            rows.extend(read.await.map_err(|failure| unavailable(&failure))?);
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.at_ms));
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(self.rows(rows))
    }

    /// What services go by, some at a time.
    async fn page(&self, subject: &CoreSubject, asked: &MemberPageQuery) -> Result<Vec<u8>, ReplyError> {
        let snapshot = self.directory.snapshot();
        let tenant = snapshot.open_tenant(&subject.account);
        let tenant = tenant.ok_or_else(|| refused(ErrorCode::NotFound, "there is no such tenant"))?;
        // Before the rows: a page may be newer than it says, and never older.
        let (standing, revision) = self.view.look(|_, standing, revision| (standing, revision));
        let mut members = rows_of(self.everybody(&subject.account, tenant).await?);
        if let Some((site, name)) = &asked.after {
            members.retain(|row| (&row.site, &row.name) > (site, name));
        }
        let total = members.len();
        members.truncate(PAGE_MEMBERS_MOST);
        members.truncate(fitting(&members));
        let has_more = members.len() < total;
        let because = standing.because().map(str::to_owned);
        Ok(encoded(&Reply::Rows(vec![MemberPage {
            is_known: standing.is_known(),
            because,
            revision,
            members,
            has_more,
        }])))
    }
}
