//! What a change would do, before it is made: fields that change, and connections that close.

use bulkhead_claims::AccountBody;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Links, Tenancy, TenancyError, TenantRecord};
use crate::operator::AccountRecord;
use crate::plan::Plan;
use crate::resolver::{
    AccountChange, ConnectionFacts, ConnectionKind, FieldDifference, blast_radius, field_differences, name_roles,
};

/// A connection that a change closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Closing {
    pub server: String,
    pub cid: u64,
    pub kind: &'static str,
    pub user: String,
    pub role: String,
    pub why: String,
}

impl Closing {
    pub(super) fn new(connection: &ConnectionFacts, role: String, why: String) -> Self {
        Self {
            server: connection.server.name.clone(),
            cid: connection.cid,
            kind: match connection.kind {
                ConnectionKind::Client => "client",
                ConnectionKind::Leaf => "leaf",
            },
            user: connection.user_name.clone(),
            role,
            why,
        }
    }
}

/// A change of one account that is not made yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    pub account: String,
    /// Old values are `theirs`, new ones `ours`.
    pub fields: Vec<FieldDifference>,
    pub closing: Vec<Closing>,
    /// Servers that did not say who is connected to them.
    pub unasked: Vec<String>,
}

/// What is known of a tenant beside its account: to people, and in the database.
fn beside(record: &TenantRecord, plan: &Plan) -> Value {
    json!({"tenant": {
        "name": record.display_name, "plan": plan.plan_ref(), "state": record.stage,
        "retention_days": plan.retention_days, "allows_unsigned": plan.allows_unsigned,
    }})
}

fn json_of(body: &AccountBody) -> Value {
    serde_json::to_value(body).unwrap_or(Value::Null)
}

impl Tenancy {
    /// What rendering `record` anew would change, and whom it would disconnect.
    ///
    /// # Errors
    /// When the store is damaged, or the servers cannot be asked.
    pub async fn preview(&self, links: &Links, record: &TenantRecord) -> Result<Preview, TenancyError> {
        self.preview_plan(links, record, &self.plan_of(record)?).await
    }

    /// The same for a plan that is not kept yet.
    ///
    /// # Errors
    /// When the store is damaged, or the servers cannot be asked.
    pub async fn preview_plan(
        &self,
        links: &Links,
        record: &TenantRecord,
        plan: &Plan,
    ) -> Result<Preview, TenancyError> {
        let (now, wanted) = self.platform.preview_tenant(record, plan).map_err(TenancyError::Platform)?;
        let known = self.records.get(&record.slug).map_err(TenancyError::Record)?;
        let (old, new) = (beside(&known, &self.plan_of(&known)?), beside(record, plan));
        let mut preview = self.preview_body(links, &now, &wanted).await?;
        preview.fields.extend(field_differences(&new, &old));
        Ok(preview)
    }

    pub(super) async fn preview_body(
        &self,
        links: &Links,
        account: &AccountRecord,
        wanted: &AccountBody,
    ) -> Result<Preview, TenancyError> {
        let (old, new) = (json_of(&account.claims.nats), json_of(wanted));
        let fields = field_differences(&new, &old);
        let mut connections = links.connections(account.key.as_str()).await?;
        name_roles(&mut connections, &old);
        let change = AccountChange { old: &old, new: &new, expires: None, now: self.now_s() };
        let closing = blast_radius(&change, &connections).into_iter().map(|(connection, reason)| {
            Closing::new(connection, connection.role.clone().unwrap_or_default(), reason.to_string())
        });
        let unasked = links.silent_servers().await?;
        Ok(Preview { account: account.name.clone(), fields, closing: closing.collect(), unasked })
    }
}
