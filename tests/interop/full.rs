//! Claims in which every member is said. No `..Default`: a new member does not compile until it is here.

use std::collections::BTreeMap;

use bulkhead_claims::{
    AccountBody, AccountLimits, ActivationBody, AuthorizationRequestBody, AuthorizationResponseBody, Body, Claims,
    ClientInfo, ClientTls, ClusterTraffic, ConnectOptions, DefaultPermissions, Export, ExportKind,
    ExternalAuthorization, Import, JetStreamLimits, MessageTrace, OperatorBody, PermissionSet, PermissionTemplate,
    ResponsePermission, ResponseType, Revocations, Sampling, Scope, ScopeKind, ScopedKey, ServerId, ServiceLatency,
    Tags, Targets, TimeRange, UserBody, WeightedMapping,
};
use serde_json::{Map, Value};

const VERSION: u32 = 2;

fn text() -> String {
    "x".to_owned()
}

fn list() -> Vec<String> {
    vec![text()]
}

fn tags() -> Tags {
    list().into_iter().collect()
}

fn revocations() -> Revocations {
    let mut list = Revocations::default();
    list.revoke("x", 1);
    list
}

fn claims<B: Body>(nats: B) -> Result<(&'static str, Value), serde_json::Error> {
    let claims = Claims {
        aud: Some(text()),
        exp: Some(1),
        jti: text(),
        iat: 1,
        iss: text(),
        name: text(),
        nbf: Some(1),
        sub: text(),
        nats,
        unknown: Map::new(),
    };
    Ok((B::KIND.name(), serde_json::to_value(claims)?))
}

/// One of every kind that has members of its own.
pub(crate) fn full_claims() -> Result<Vec<(&'static str, Value)>, serde_json::Error> {
    Ok(vec![
        claims(operator())?,
        claims(account())?,
        claims(user())?,
        claims(activation())?,
        claims(request())?,
        claims(response())?,
    ])
}

fn operator() -> OperatorBody {
    OperatorBody {
        signing_keys: list(),
        account_server_url: text(),
        operator_service_urls: list(),
        system_account: Some(text()),
        assert_server_version: text(),
        strict_signing_key_usage: true,
        tags: tags(),
        kind: text(),
        version: VERSION,
        unknown: Map::new(),
    }
}

fn account() -> AccountBody {
    let target = WeightedMapping { subject: text(), weight: 1, cluster: text(), unknown: Map::new() };
    AccountBody {
        imports: vec![import()],
        exports: vec![export()],
        limits: limits(),
        signing_keys: vec![ScopedKey::Plain(text()), ScopedKey::Scoped(Box::new(scope()))],
        revocations: revocations(),
        default_permissions: DefaultPermissions {
            publish: permissions(),
            subscribe: permissions(),
            respond: Some(respond()),
            unknown: Map::new(),
        },
        mappings: BTreeMap::from([(text(), Targets(vec![target]))]),
        authorization: ExternalAuthorization {
            auth_users: list(),
            allowed_accounts: list(),
            xkey: text(),
            unknown: Map::new(),
        },
        trace: Some(MessageTrace { destination: text(), sampling: 1, unknown: Map::new() }),
        cluster_traffic: Some(ClusterTraffic::Owner),
        description: text(),
        info_url: text(),
        tags: tags(),
        kind: text(),
        version: VERSION,
        unknown: Map::new(),
    }
}

fn import() -> Import {
    Import {
        name: text(),
        subject: text(),
        account: text(),
        token: text(),
        to: text(),
        local_subject: text(),
        kind: ExportKind::Service,
        share: true,
        allow_trace: true,
        unknown: Map::new(),
    }
}

fn export() -> Export {
    Export {
        name: text(),
        subject: text(),
        kind: ExportKind::Service,
        token_req: true,
        revocations: revocations(),
        response_type: Some(ResponseType::Stream),
        response_threshold: 1,
        service_latency: Some(ServiceLatency { sampling: Sampling::Percent(1), results: text(), unknown: Map::new() }),
        account_token_position: Some(1),
        advertise: true,
        allow_trace: true,
        description: text(),
        info_url: text(),
        unknown: Map::new(),
    }
}

fn limits() -> AccountLimits {
    let tier = JetStreamLimits {
        mem_storage: 1,
        disk_storage: 1,
        streams: 1,
        consumer: 1,
        max_ack_pending: 1,
        mem_max_stream_bytes: 1,
        disk_max_stream_bytes: 1,
        max_bytes_required: true,
        unknown: Map::new(),
    };
    AccountLimits {
        subs: 1,
        data: 1,
        payload: 1,
        imports: 1,
        exports: 1,
        wildcards: true,
        disallow_bearer: true,
        conn: 1,
        leaf: 1,
        mem_storage: 1,
        disk_storage: 1,
        streams: 1,
        consumer: 1,
        max_ack_pending: 1,
        mem_max_stream_bytes: 1,
        disk_max_stream_bytes: 1,
        max_bytes_required: true,
        tiered_limits: BTreeMap::from([(text(), tier)]),
        unknown: Map::new(),
    }
}

fn scope() -> Scope {
    Scope {
        kind: ScopeKind::User,
        key: text(),
        role: text(),
        template: PermissionTemplate {
            publish: permissions(),
            subscribe: permissions(),
            respond: Some(respond()),
            src: list(),
            times: times(),
            times_location: text(),
            subs: 1,
            data: 1,
            payload: 1,
            bearer_token: true,
            proxy_required: true,
            allowed_connection_types: list(),
            unknown: Map::new(),
        },
        description: text(),
        unknown: Map::new(),
    }
}

fn permissions() -> PermissionSet {
    PermissionSet { allow: list(), deny: list(), unknown: Map::new() }
}

fn respond() -> ResponsePermission {
    ResponsePermission { max: 1, ttl: 1, unknown: Map::new() }
}

fn times() -> Vec<TimeRange> {
    vec![TimeRange { start: text(), end: text(), unknown: Map::new() }]
}

fn user() -> UserBody {
    UserBody {
        publish: permissions(),
        subscribe: permissions(),
        respond: Some(respond()),
        src: list(),
        times: times(),
        times_location: text(),
        subs: 1,
        data: 1,
        payload: 1,
        bearer_token: true,
        proxy_required: true,
        allowed_connection_types: list(),
        issuer_account: text(),
        tags: tags(),
        kind: text(),
        version: VERSION,
        unknown: Map::new(),
    }
}

fn activation() -> ActivationBody {
    ActivationBody {
        subject: text(),
        shared: Some(ExportKind::Service),
        issuer_account: text(),
        tags: tags(),
        kind: text(),
        version: VERSION,
        unknown: Map::new(),
    }
}

fn request() -> AuthorizationRequestBody {
    AuthorizationRequestBody {
        server_id: ServerId {
            name: text(),
            host: text(),
            id: text(),
            version: text(),
            cluster: text(),
            tags: tags(),
            xkey: text(),
            unknown: Map::new(),
        },
        user_nkey: text(),
        client_info: ClientInfo {
            host: text(),
            id: 1,
            user: text(),
            name: text(),
            tags: tags(),
            name_tag: text(),
            kind: text(),
            protocol: text(),
            mqtt_id: text(),
            nonce: text(),
            unknown: Map::new(),
        },
        connect_opts: ConnectOptions {
            jwt: text(),
            nkey: text(),
            sig: text(),
            auth_token: text(),
            user: text(),
            pass: text(),
            name: text(),
            lang: text(),
            version: text(),
            protocol: 1,
            unknown: Map::new(),
        },
        client_tls: Some(ClientTls {
            version: text(),
            cipher: text(),
            certs: list(),
            verified_chains: vec![list()],
            unknown: Map::new(),
        }),
        request_nonce: text(),
        tags: tags(),
        kind: text(),
        version: VERSION,
        unknown: Map::new(),
    }
}

fn response() -> AuthorizationResponseBody {
    AuthorizationResponseBody {
        jwt: text(),
        error: text(),
        issuer_account: text(),
        tags: tags(),
        kind: text(),
        version: VERSION,
        unknown: Map::new(),
    }
}
