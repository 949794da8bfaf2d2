//! Renders the whole claims of every kind of account. Source: design section 2; the shapes were run as they are
//! (facts: topology-proved section 3). No plain signing key, no `>`, no limit of -1 but `data`, which servers ignore.

use std::time::Duration;

use bulkhead_bus::gate::{CALLOUT, DECISIONS, GATE_BUCKET};
use bulkhead_bus::{Head, Role, StreamName, role_permissions};
use bulkhead_runtime::{BucketSpec, LogSpec, MEMBER_BUCKETS};

use crate::hub_size::HubSize;
use crate::plan::Plan;
use bulkhead_claims::{
    AccountBody, AccountLimits, Export, ExportKind, ExternalAuthorization, Import, PermissionTemplate, ResponseType,
    ScopedKey,
};

const CLIENT: &[&str] = &["STANDARD"];
const LEAF: &[&str] = &["LEAFNODE"];
const EVERYBODY: &[&str] = &["STANDARD", "LEAFNODE"];
/// Bookkeeping beside the streams' own bytes: the server reserves `max_bytes` of each stream at its creation.
const HUB_DISK_SLACK: i64 = 64 << 20;
const HUB_STREAMS: i64 = 8;
/// What the gatekeeper knows: 10,000 accounts with a few kilobytes each, and the largest of them.
pub const GATE: BucketSpec =
    BucketSpec { name: GATE_BUCKET, max_bytes: 256 << 20, max_value_bytes: 512 << 10, has_ends: false };
/// What it has decided, until audit has read it.
pub const DECISIONS_LOG: LogSpec = LogSpec {
    name: DECISIONS,
    subject: "decision.*",
    max_bytes: 512 << 20,
    max_age: Duration::from_secs(30 * 86_400),
    max_message_bytes: 16 << 10,
};
/// Tenants whose live stream one INTAKE account imports (design section 2).
pub const INTAKE_TENANTS: usize = 250;

/// A role's public signing key.
#[derive(Debug, Clone)]
pub struct RoleKey {
    pub role: Role,
    pub public: String,
}

/// A role's signing key with exactly what the role may do.
#[must_use]
pub fn scoped_key(role: Role, public: String) -> ScopedKey {
    // Everybody knocks as the sentinel, and proves nothing with it.
    let is_sentinel = role == Role::Sentinel;
    let kinds = match (is_sentinel, role == Role::Leaf) {
        (true, _) => EVERYBODY,
        (false, true) => LEAF,
        (false, false) => CLIENT,
    };
    let mut template = PermissionTemplate::new(role_permissions(role), kinds);
    template.bearer_token = is_sentinel;
    ScopedKey::new(public, role.name(), template)
}

fn scoped(keys: &[RoleKey]) -> Vec<ScopedKey> {
    keys.iter().map(|key| scoped_key(key.role, key.public.clone())).collect()
}

fn export(name: &str, subject: &str, kind: ExportKind, position: Option<u32>) -> Export {
    let response_type = match kind {
        ExportKind::Service => Some(ResponseType::Singleton),
        ExportKind::Stream => None,
    };
    Export {
        name: name.to_owned(),
        subject: subject.to_owned(),
        kind,
        response_type,
        account_token_position: position,
        ..Export::default()
    }
}

fn import(name: &str, subject: &str, local: &str, account: &str, kind: ExportKind) -> Import {
    Import {
        name: name.to_owned(),
        subject: subject.to_owned(),
        local_subject: local.to_owned(),
        account: account.to_owned(),
        kind,
        ..Import::default()
    }
}

/// The system account: server events and claims push.
#[must_use]
pub fn system_account(keys: &[RoleKey]) -> AccountBody {
    let limits = AccountLimits {
        subs: 1_000,
        data: -1,
        payload: 1 << 20,
        exports: 2,
        wildcards: true,
        conn: 16,
        ..AccountLimits::default()
    };
    let monitoring = vec![
        export("account-monitoring-streams", "$SYS.ACCOUNT.*.>", ExportKind::Stream, Some(3)),
        Export {
            response_type: None,
            ..export("account-monitoring-services", "$SYS.REQ.ACCOUNT.*.*", ExportKind::Service, Some(4))
        },
    ];
    AccountBody::new(limits, vec![], monitoring, scoped(keys))
}

/// AUTH: the gatekeeper, with what it knows and what it has decided.
#[must_use]
pub fn auth_account(keys: &[RoleKey], hub: HubSize) -> AccountBody {
    let copies = i64::try_from(hub.servers()).unwrap_or(i64::MAX);
    let disk = (GATE.max_bytes + DECISIONS_LOG.max_bytes) * copies;
    let limits = AccountLimits {
        subs: 1_000,
        data: -1,
        payload: 1 << 20,
        exports: 1,
        conn: 32,
        disk_storage: disk + HUB_DISK_SLACK,
        streams: 2,
        consumer: 64,
        max_ack_pending: 1_000,
        disk_max_stream_bytes: GATE.max_bytes.max(DECISIONS_LOG.max_bytes),
        max_bytes_required: true,
        ..AccountLimits::default()
    };
    let callout = Export { token_req: true, ..export("callout", CALLOUT, ExportKind::Service, None) };
    AccountBody::new(limits, vec![], vec![callout], scoped(keys))
}

/// Who decides about whoever knocks at SENT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Callout {
    pub auth: String,
    /// AUTH's activation of the question for SENT.
    pub activation: String,
    /// A user's key of which nobody has the private half: whoever the server takes for this user is not asked about.
    pub nobody: String,
    /// Public X25519 key of the gatekeepers.
    pub xkey: String,
}

impl Callout {
    /// What SENT says already.
    #[must_use]
    pub fn of(sent: &AccountBody) -> Self {
        let question = sent.imports.first();
        Self {
            auth: question.map(|question| question.account.clone()).unwrap_or_default(),
            activation: question.map(|question| question.token.clone()).unwrap_or_default(),
            nobody: sent.authorization.auth_users.first().cloned().unwrap_or_default(),
            xkey: sent.authorization.xkey.clone(),
        }
    }
}

/// SENT: everybody, before they are let in anywhere. Its connections have no limit: a full SENT would keep everybody out.
#[must_use]
pub fn sentinel_account(keys: &[RoleKey], callout: &Callout) -> AccountBody {
    let limits = AccountLimits {
        subs: 10,
        data: -1,
        payload: 1_024,
        imports: 1,
        conn: -1,
        leaf: -1,
        ..AccountLimits::default()
    };
    let question = Import {
        token: callout.activation.clone(),
        local_subject: String::new(),
        ..import("callout", CALLOUT, "", &callout.auth, ExportKind::Service)
    };
    let mut body = AccountBody::new(limits, vec![question], vec![], scoped(keys));
    body.authorization = ExternalAuthorization {
        auth_users: vec![callout.nobody.clone()],
        allowed_accounts: vec!["*".to_owned()],
        xkey: callout.xkey.clone(),
        ..ExternalAuthorization::default()
    };
    body
}

/// CORE: constant however many tenants there are. The exports make the server write token 2.
#[must_use]
pub fn core_account(keys: &[RoleKey], hub: HubSize) -> AccountBody {
    let streams = StreamName::HUB.into_iter().map(|stream| stream.spec().max_bytes);
    let kept: Vec<i64> = streams.chain(MEMBER_BUCKETS.map(|bucket| bucket.max_bytes)).collect();
    // Every copy of a stream counts against the account (facts: hub-of-three).
    let copies = i64::try_from(hub.servers()).unwrap_or(i64::MAX);
    let disk = kept.iter().sum::<i64>() * copies;
    let limits = AccountLimits {
        subs: 20_000,
        data: -1,
        payload: 1 << 20,
        exports: 2,
        wildcards: true,
        conn: 64,
        disk_storage: disk + HUB_DISK_SLACK,
        streams: HUB_STREAMS,
        // Each replica of the registry watches both buckets.
        consumer: HUB_STREAMS * 8,
        max_ack_pending: 20_000,
        disk_max_stream_bytes: kept.iter().copied().max().unwrap_or(0),
        max_bytes_required: true,
        ..AccountLimits::default()
    };
    let exports = vec![
        export("up", &Head::Up.core_pattern("*"), ExportKind::Service, Some(2)),
        export("down", &Head::Down.core_pattern("*"), ExportKind::Stream, Some(2)),
    ];
    AccountBody::new(limits, vec![], exports, scoped(keys))
}

/// INTAKE-n: imports the live stream of each tenant under that tenant's prefix.
#[must_use]
pub fn intake_account(keys: &[RoleKey], tenants: &[(String, String)]) -> AccountBody {
    let limits = AccountLimits {
        subs: 5_000,
        data: -1,
        payload: 1 << 20,
        imports: i64::try_from(INTAKE_TENANTS).unwrap_or(0),
        conn: 8,
        ..AccountLimits::default()
    };
    let live = |(slug, account): &(String, String)| {
        let name = format!("live-{slug}");
        import(&name, Head::Live.pattern(), &Head::Live.core_pattern(account), account, ExportKind::Stream)
    };
    AccountBody::new(limits, tenants.iter().map(live).collect(), vec![], scoped(keys))
}

/// A tenant's account, or OPS, which is built like one. `own` and `core` are account keys.
#[must_use]
pub fn tenant_account(plan: &Plan, own: &str, core: &str, keys: &[RoleKey]) -> AccountBody {
    let limits = AccountLimits {
        subs: i64::from(plan.subscriptions),
        data: -1,
        payload: i64::from(plan.payload_bytes),
        imports: 2,
        exports: 1,
        wildcards: true,
        conn: i64::from(plan.connections),
        leaf: i64::from(plan.leaf_links),
        ..AccountLimits::default()
    };
    let imports = vec![
        import("up", &Head::Up.core_pattern(own), Head::Up.pattern(), core, ExportKind::Service),
        import("down", &Head::Down.core_pattern(own), Head::Down.pattern(), core, ExportKind::Stream),
    ];
    let exports = vec![export("live", Head::Live.pattern(), ExportKind::Stream, None)];
    AccountBody::new(limits, imports, exports, scoped(keys))
}

/// The same account with nobody in it: the server closes every connection and link and takes no new one. Unlike an account that
/// is deleted or has expired, this also reaches servers that were away (facts: accounts-and-nsc, findings 4 and 6).
#[must_use]
pub fn closed(body: AccountBody) -> AccountBody {
    AccountBody { limits: AccountLimits { conn: 0, leaf: 0, ..body.limits }, ..body }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PlanName;

    fn keys(roles: &[Role]) -> Vec<RoleKey> {
        roles.iter().map(|&role| RoleKey { role, public: format!("A-{}", role.name()) }).collect()
    }

    #[test]
    fn a_tenants_account_is_finite_and_bound_to_its_own_key() {
        let body = tenant_account(&Plan::of(PlanName::Free), "AOWN", "ACORE", &keys(&Role::TENANT));
        let json = serde_json::to_value(&body).unwrap();
        for (name, limit) in json["limits"].as_object().unwrap() {
            assert!(name == "data" || limit != -1, "{name} is unlimited");
        }
        assert_eq!(body.limits.disk_storage, 0);
        for import in json["imports"].as_array().unwrap() {
            assert!(import["subject"].as_str().unwrap().starts_with("t.AOWN."), "{import}");
        }
        assert!(body.signing_keys.iter().all(|key| key.role().is_some()), "a plain signing key");
    }

    #[test]
    fn nobody_may_do_anything_in_sent_and_everybody_fits_in() {
        let text = |text: &str| text.to_owned();
        let callout =
            Callout { auth: text("AAUTH"), activation: text("token"), nobody: text("UNOBODY"), xkey: text("XKEY") };
        let body = sentinel_account(&keys(&[Role::Sentinel]), &callout);
        let json = serde_json::to_value(&body).unwrap();
        let template = &json["signing_keys"][0]["template"];
        for way in ["pub", "sub"] {
            assert_eq!(template[way], serde_json::json!({ "deny": [">"] }), "{way}");
        }
        assert_eq!((body.limits.conn, body.limits.leaf), (-1, -1), "a full SENT keeps everybody out");
        assert_eq!(json["authorization"]["auth_users"], serde_json::json!(["UNOBODY"]));
        assert!(body.exports.is_empty() && body.imports.len() == 1);
        let auth = auth_account(&keys(&Role::AUTH), HubSize::One);
        assert!(auth.exports[0].token_req && auth.imports.is_empty() && auth.limits.leaf == 0);
    }

    #[test]
    fn core_stays_the_same_size() {
        let body = core_account(&keys(&Role::CORE), HubSize::One);
        assert!(body.imports.is_empty());
        assert!(body.exports.iter().all(|export| export.account_token_position == Some(2)));
        assert!(body.limits.disk_storage > 0 && body.limits.max_bytes_required);
        let three = core_account(&keys(&Role::CORE), HubSize::Three);
        let slack = HUB_DISK_SLACK;
        assert_eq!(three.limits.disk_storage - slack, (body.limits.disk_storage - slack) * 3);
    }

    #[test]
    fn intake_puts_the_tenants_prefix_before_what_it_imports() {
        let body = intake_account(&keys(&[Role::CoreLive]), &[("a".to_owned(), "AKEY".to_owned())]);
        assert_eq!(body.imports[0].local_subject, "t.AKEY.live.>");
        assert!(body.exports.is_empty());
    }
}
