//! The server configurations that are rendered are ones that nats-server takes, whatever names and paths are in them.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use bulkhead_accounts::certificates::{Authority, CertificateFiles, TrustDomain};
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::nats_config::{CalloutConfig, ClusterConfig, HubConfig, LeafConfig, LeafUser, SYNC_ALWAYS};
use bulkhead_accounts::operator::{OperatorStore, UserRequest};
use bulkhead_accounts::render::auth_account;
use bulkhead_bus::question::{KEEPER_INBOX, server_reload};
use bulkhead_bus::{EdgeRole, Role, edge_permissions};
use bulkhead_claims::parse_credentials;
use bulkhead_testkit::find_test_tools;
use time::OffsetDateTime;

/// What `nats-server -t` says of a configuration.
fn check(folder: &Path, text: &str) -> anyhow::Result<(bool, String)> {
    let path = folder.join("server.conf");
    std::fs::write(&path, text)?;
    let output = Command::new(find_test_tools()?.nats_server.path).arg("-t").arg("-c").arg(&path).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}

struct Made {
    hub: HubConfig,
    leaf: LeafConfig,
}

/// Both configurations with everything that they name, in `folder`.
fn made(folder: &Path) -> anyhow::Result<Made> {
    let now = OffsetDateTime::now_utc();
    let operator = OperatorStore::open(folder.join("nsc"), now.unix_timestamp())?;
    let authority = Authority::new(folder.join("pki"), TrustDomain::default());
    authority.ensure_roots(now)?;
    let tenant = "acme-corp".parse()?;
    authority.ensure_tenant(&tenant, now)?;
    let (own, route) = (CertificateFiles::named(folder, "hub"), CertificateFiles::named(folder, "route"));
    authority.issue_hub("hub-1", &[], &own, now)?;
    authority.issue_route("hub-1", &[], &route, now)?;
    let system = operator.system()?;
    let hub = HubConfig {
        server_name: "hub-1".to_owned(),
        client_listen: "127.0.0.1:4222".to_owned(),
        leaf_listen: "127.0.0.1:7422".to_owned(),
        operator_token: operator.token.clone(),
        system_account: system.key.to_string(),
        system_token: system.token,
        resolver_dir: folder.join("jwt"),
        store_dir: folder.join("js"),
        max_file_bytes: 1 << 30,
        sync_interval: SYNC_ALWAYS,
        hub_cert_file: own.cert_file.clone(),
        hub_key_file: own.key_file.clone(),
        client_root_file: authority.client_root_file(),
        cluster: Some(ClusterConfig {
            listen: "127.0.0.1:6222".to_owned(),
            routes: vec!["tls://127.0.0.1:6223".to_owned(), "tls://127.0.0.1:6224".to_owned()],
            cert_file: route.cert_file,
            key_file: route.key_file,
            route_root_file: authority.route_root_file(),
        }),
        callout: None,
    };
    let leaf = LeafConfig {
        server_name: "leaf-acme-corp-oslo".to_owned(),
        client_listen: "127.0.0.1:4223".to_owned(),
        store_dir: folder.join("leaf-js"),
        domain: "acme-corp-oslo".to_owned(),
        max_file_bytes: 1 << 30,
        listener_cert_file: own.cert_file.clone(),
        listener_key_file: own.key_file.clone(),
        tenant_intermediate_file: authority.tenant_intermediate_file(&tenant),
        users: vec![
            LeafUser::new("fwd.oslo.acme-corp.x".to_owned(), edge_permissions(&"oslo".parse()?, &EdgeRole::Forwarder)),
            LeafUser::new(
                "p1.oslo.acme-corp.x".to_owned(),
                edge_permissions(&"oslo".parse()?, &EdgeRole::Poller("p1".parse()?)),
            ),
        ],
        keeper: Some(LeafUser {
            name: "leaf.oslo.acme-corp.x".to_owned(),
            publish: vec![server_reload("*")],
            subscribe: vec![format!("{KEEPER_INBOX}.>")],
        }),
        link_file: None,
        proxy: Some("http://proxy.example:3128".to_owned()),
        hub_urls: vec!["tls://hub-1.example:7422".to_owned(), "tls://hub-2.example:7422".to_owned()],
        reconnect: "1s".to_owned(),
        kept: vec!["results.>".to_owned()],
        leaf_cert_file: own.cert_file,
        leaf_key_file: own.key_file,
        server_root_file: authority.server_root_file(),
    };
    Ok(Made { hub, leaf })
}

/// A hub on which certificates decide.
fn gated(folder: &Path, hub: &HubConfig) -> anyhow::Result<HubConfig> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let operator = OperatorStore::open(folder.join("nsc"), now)?;
    let account =
        |name: &str, role| operator.ensure_account(name, &[role], now, |_, keys| auth_account(keys, HubSize::One));
    let (auth, sent) = (account("auth", Role::Gatekeeper)?, account("sent", Role::Sentinel)?);
    let user = UserRequest { account: "sent", role: Role::Sentinel, name: "sentinel", site: None, expires: now + 60 };
    let sentinel_token = parse_credentials(&operator.issue_user(&user, now)?.text)?.token;
    let callout = CalloutConfig { pinned: vec![auth.key.to_string(), sent.key.to_string()], sentinel_token };
    Ok(HubConfig { callout: Some(callout), ..hub.clone() })
}

#[test]
fn nats_server_takes_what_is_rendered() -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("a folder, 'quoted' {and} #odd ").tempdir()?;
    let Made { hub, leaf } = made(folder.path())?;
    let alone = HubConfig { cluster: None, ..hub.clone() };
    for text in [hub.render()?, alone.render()?, gated(folder.path(), &alone)?.render()?, leaf.render()?] {
        let (is_taken, said) = check(folder.path(), &text)?;
        assert!(is_taken, "{said}\n{text}");
    }
    Ok(())
}

#[test]
fn a_name_cannot_add_a_directive() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Made { leaf, .. } = made(folder.path())?;
    let evil = "x\"\nport: 1\naccounts { EVIL {} }\n#";
    let bent = LeafConfig { server_name: evil.to_owned(), domain: evil.to_owned(), ..leaf.clone() };
    let text = bent.render()?;
    // What was one line stays one line: nothing of the name begins a directive.
    let directives = |text: &str| {
        text.lines().map(|line| line.trim_start().split([' ', ':']).next().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(directives(&text), directives(&leaf.render()?));
    // Control: the same text unquoted does begin one.
    let unquoted = leaf.render()?.replace("\"leaf-acme-corp-oslo\"", "x\nport: 1");
    assert_ne!(directives(&unquoted), directives(&leaf.render()?));
    let (is_taken, said) =
        check(folder.path(), &leaf.render()?.replace("verify_and_map: true", "verify_and_map: maybe"))?;
    assert!(!is_taken, "nats-server -t takes anything: {said}");
    check(folder.path(), &text).context("a bent name is either refused or harmless")?;
    Ok(())
}
