//! What was written down while hub or database were away: everything that takes something away is begun all the same, and
//! completed when they are back.

use bulkhead_bus::TenantSlug;
use bulkhead_store::WithPollers;
use serde_json::json;

use super::{Act, Line, Links, PollerPath, SitePath, Tenancy, TenancyError};

impl Tenancy {
    /// Completes every withdrawal that was begun; `announce` hears of each.
    ///
    /// # Errors
    /// When the hub or the database do not take one; the others are tried as well.
    pub async fn complete_withdrawals(&self, links: &Links, announce: &dyn Fn(&str)) -> Result<(), TenancyError> {
        let mut failed = None;
        for lines in self.journal.under_way().map_err(TenancyError::Journal)? {
            let Some(first) = lines.first() else { continue };
            let completed = self.complete(links, first, announce).await;
            failed = failed.or(completed.err());
        }
        failed.map_or(Ok(()), Err)
    }

    async fn complete(&self, links: &Links, begun: &Line, announce: &dyn Fn(&str)) -> Result<(), TenancyError> {
        let say = || announce(&format!("completing: {} of {}", begun.act.as_str(), begun.about));
        let bad =
            |error: String| TenancyError::Invalid(format!("the journal has an act about {:?}: {error}", begun.about));
        match begun.act {
            Act::RevokePerson => {
                say();
                let account = begun.about.split('/').next().unwrap_or_default();
                self.narrow(links, account).await?;
                let act = self.begin(Act::RevokePerson, &begun.about, json!({}))?;
                act.finish(json!({"completed_by": "push"}), self.now_s()).map_err(TenancyError::Journal)
            }
            Act::SuspendTenant => {
                say();
                let slug: TenantSlug = begun.about.parse().map_err(|error| bad(format!("{error}")))?;
                self.suspend(links, &slug).await.map(drop)
            }
            Act::RemoveSite => {
                say();
                let path: SitePath = begun.about.parse().map_err(|error| bad(format!("{error}")))?;
                // Whether pollers go with it was asked before it was begun.
                self.remove_site(links, &path, WithPollers::Remove).await
            }
            Act::RemovePoller => {
                say();
                let path: PollerPath = begun.about.parse().map_err(|error| bad(format!("{error}")))?;
                self.remove_poller(links, &path).await
            }
            Act::ChangePoller if begun.detail["change"] == "revoked" => {
                say();
                let path: PollerPath = begun.about.parse().map_err(|error| bad(format!("{error}")))?;
                self.revoke_poller(links, &path).await
            }
            Act::AddTenant
            | Act::UndoTenant
            | Act::RestoreRows
            | Act::CopyRows
            | Act::ChangeTenant
            | Act::ResumeTenant
            | Act::OffboardTenant
            | Act::RestoreTenant
            | Act::PurgeTenant
            | Act::RotateRole
            | Act::AddPerson
            | Act::AddSite
            | Act::AddPoller
            | Act::InvitePoller
            | Act::EnrolPoller
            | Act::RenewPoller
            | Act::ChangePoller
            | Act::PushAccounts => Ok(()),
        }
    }
}
