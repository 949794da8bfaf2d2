//! Accounts as they lie in the store beside what they would be rendered to. Writes nothing.

use bulkhead_bus::{AccountKey, Role};
use bulkhead_claims::AccountBody;

use super::platform::{CORE, OPS, Platform, PlatformError, ops_plan, tenant_body};
use crate::gate::{AUTH, SENT};
use crate::hub_size::HubSize;
use crate::operator::{AccountRecord, OperatorError, SYSTEM};
use crate::plan::Plan;
use crate::render::{
    Callout, auth_account, core_account, intake_account, sentinel_account, system_account, tenant_account,
};
use crate::tenancy::{Shard, TenantRecord, intake_name};

/// What an account is rendered from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    System,
    Core(HubSize),
    Auth(HubSize),
    Sentinel,
    Ops,
    Intake(u32, &'a Shard),
    Tenant(&'a TenantRecord, &'a Plan),
}

impl Platform {
    /// An account as it is and as it would be rendered; `core` is CORE's key.
    ///
    /// # Errors
    /// When the account is not there, is damaged, or was changed by another tool.
    pub fn preview(
        &self,
        source: Source<'_>,
        core: &AccountKey,
    ) -> Result<(AccountRecord, AccountBody), OperatorError> {
        let operator = &self.operator;
        match source {
            Source::System => operator.preview_account(SYSTEM, &Role::SYSTEM, |_, keys| system_account(keys)),
            Source::Core(hub) => operator.preview_account(CORE, &Role::CORE, |_, keys| core_account(keys, hub)),
            Source::Auth(hub) => operator.preview_account(AUTH, &Role::AUTH, |_, keys| auth_account(keys, hub)),
            // What is random in it is right as it lies there.
            Source::Sentinel => {
                let sent = operator.account(SENT)?.ok_or_else(|| OperatorError::NoAccount(SENT.to_owned()))?;
                let callout = Callout::of(&sent.claims.nats);
                operator.preview_account(SENT, &[Role::Sentinel], |_, keys| sentinel_account(keys, &callout))
            }
            Source::Ops => operator.preview_account(OPS, &[Role::PlatformAdmin], |own, keys| {
                tenant_account(&ops_plan(), own, core.as_str(), keys)
            }),
            Source::Intake(number, shard) => {
                let imported = shard.imported();
                operator
                    .preview_account(&intake_name(number), &[Role::CoreLive], |_, keys| intake_account(keys, &imported))
            }
            Source::Tenant(record, plan) => {
                operator.preview_account(record.slug.as_str(), &Role::TENANT, |own, keys| {
                    tenant_body(record, plan, own, core.as_str(), keys)
                })
            }
        }
    }

    /// A tenant's account as it is and as it would be rendered.
    ///
    /// # Errors
    /// When the account is not there, or the operator store is damaged.
    pub fn preview_tenant(
        &self,
        record: &TenantRecord,
        plan: &Plan,
    ) -> Result<(AccountRecord, AccountBody), PlatformError> {
        self.preview(Source::Tenant(record, plan), &self.core_key()?).map_err(PlatformError::Operator)
    }
}
