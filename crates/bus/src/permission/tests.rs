use super::*;

const ROLES: [Role; 19] = Role::ALL;

#[test]
fn nobody_has_everything() {
    for role in ROLES {
        let permissions = role_permissions(role);
        for subject in permissions.publish.iter().chain(&permissions.subscribe) {
            assert!(subject != ">" && subject != "*" && !subject.starts_with("*."), "{role:?}: {subject}");
            assert!(!subject.starts_with("_INBOX."), "{role:?} has the shared inbox");
            assert!(!subject.contains('<'), "{role:?}: {subject} has an open placeholder");
        }
    }
}

#[test]
fn no_list_with_a_template_names_a_queue() {
    for role in ROLES {
        let Permissions { publish, subscribe } = role_permissions(role);
        for list in [publish, subscribe] {
            let has_template = list.iter().any(|subject| subject.contains("{{"));
            assert!(!has_template || list.iter().all(|subject| !subject.contains(' ')), "{role:?}: {list:?}");
        }
    }
}

#[test]
fn only_the_pulling_role_can_acknowledge() {
    for role in ROLES {
        let acks = role_permissions(role).publish.iter().any(|subject| subject.starts_with("$JS.ACK"));
        assert_eq!(acks, role == Role::CoreStream, "{role:?}");
    }
    for answering in [Role::CoreRpc, Role::DispatchRpc] {
        assert_eq!(role_permissions(answering).publish, ["_R_.>"], "{answering:?}");
    }
    // Besides, it answers the one service that asks it within CORE.
    assert_eq!(role_permissions(Role::RegistryRpc).publish, ["_R_.>", "_INBOX_dispatch-push.>"]);
}

#[test]
fn who_answers_has_one_subscription_for_all_that_may_ask() {
    let subscribe = |role| role_permissions(role).subscribe;
    assert_eq!(subscribe(Role::RegistryRpc), ["t.*.up.*.*.rpc.registry.*", "t.*.svc.registry.list_members"]);
    assert_eq!(subscribe(Role::DispatchRpc), ["t.*.up.*.*.rpc.dispatch.*"]);
    assert_eq!(subscribe(Role::CoreRpc), ["t.*.up._user.*.rpc.core.*"]);
    assert_eq!(subscribe(Role::DispatchPush), ["t.*.ev.registry.changed", "_INBOX_{{name()}}.>"]);
}

#[test]
fn who_only_looks_changes_nothing() {
    let publish = role_permissions(Role::Viewer).publish;
    let changes = ["hold_member", "release_member", ".dispatch."];
    assert!(publish.iter().all(|subject| changes.iter().all(|word| !subject.contains(word))), "{publish:?}");
    assert!(role_permissions(Role::Admin).publish.iter().any(|subject| subject.ends_with("change_checks")));
    for role in Role::TENANT {
        let Permissions { publish, subscribe } = role_permissions(role);
        let is_inner = |subject: &String| subject.contains("svc.") || subject.contains("ev.registry");
        assert!(!publish.iter().chain(&subscribe).any(is_inner), "{role:?}");
    }
}

#[test]
fn only_the_registry_keeps_leases_and_nobody_purges_them() {
    for role in ROLES {
        let publish = role_permissions(role).publish;
        let keeps = publish.iter().any(|subject| subject.starts_with("$KV.REG_"));
        assert_eq!(keeps, role == Role::RegistryKeep, "{role:?}");
        let purges = |subject: &String| subject.contains("KV_REG_") && subject.contains(".PURGE");
        let deletes = |subject: &String| subject.contains("STREAM.DELETE.KV_REG_");
        assert!(!publish.iter().any(|subject| purges(subject) || deletes(subject)), "{role:?}: {publish:?}");
    }
}

#[test]
fn only_the_system_operator_changes_accounts_and_it_stops_no_server() {
    for role in ROLES {
        let changes = role_permissions(role).publish.iter().any(|subject| {
            let last = subject.rsplit('.').next().unwrap_or_default();
            subject.starts_with("$SYS.") && ["UPDATE", "DELETE"].contains(&last)
        });
        assert_eq!(changes, role == Role::SystemOperator, "{role:?}");
        let closes = role_permissions(role).publish.iter().any(|subject| subject.ends_with(".KICK"));
        assert_eq!(closes, matches!(role, Role::SystemOperator | Role::GateWatch), "{role:?}");
    }
    let system = role_permissions(Role::SystemOperator).publish;
    assert!(system.iter().all(|subject| !subject.ends_with(".RELOAD") && !subject.ends_with(".>")), "{system:?}");
}

#[test]
fn only_who_pulls_or_provisions_sees_how_much_waits() {
    for role in ROLES {
        let publish = role_permissions(role).publish;
        let looks = StreamName::HUB.into_iter().any(|stream| publish.contains(&stream_info(stream)));
        assert_eq!(looks, matches!(role, Role::CoreStream | Role::Provisioner), "{role:?}");
    }
}

#[test]
fn the_gatekeeper_cannot_change_what_it_knows_or_take_back_what_it_said() {
    let publish = role_permissions(Role::Gatekeeper).publish;
    let is_forbidden = |subject: &&String| {
        subject.starts_with("$KV.") || subject.contains("PURGE") || subject.contains(gate::DECISIONS)
    };
    assert_eq!(publish.iter().filter(is_forbidden).collect::<Vec<_>>(), Vec::<&String>::new());
    let writer = role_permissions(Role::GateWriter).publish;
    let is_removal = |subject: &&String| ["PURGE", "DELETE"].iter().any(|act| subject.contains(act));
    assert_eq!(writer.iter().filter(is_removal).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(role_permissions(Role::Sentinel), Permissions::default());
}

#[test]
fn only_the_backup_reads_whole_streams_and_it_removes_nothing() {
    for role in ROLES {
        let publish = role_permissions(role).publish;
        let is_reader = publish.iter().any(|subject| subject.contains("SNAPSHOT") || subject.contains("RESTORE"));
        assert_eq!(is_reader, role == Role::Backup, "{role:?}");
    }
    let backup = role_permissions(Role::Backup).publish;
    let harm = ["DELETE", "PURGE", "UPDATE", "CREATE", "$JS.ACK"];
    assert!(backup.iter().all(|subject| harm.iter().all(|word| !subject.contains(word))), "{backup:?}");
}

#[test]
fn a_leaf_speaks_for_its_own_site_only() {
    let leaf = role_permissions(Role::Leaf);
    assert_eq!(
        leaf.publish,
        [
            "up.{{tag(site)}}.fwd.results",
            "up.{{tag(site)}}.fwd.backfill",
            "up.{{tag(site)}}.*.rpc.registry.register",
            "up.{{tag(site)}}.*.rpc.registry.renew",
            "up.{{tag(site)}}.*.rpc.registry.deregister",
            "up.{{tag(site)}}.*.rpc.dispatch.fetch_assignment",
            "up.{{tag(site)}}.*.rpc.dispatch.fetch_runs",
            "up.{{tag(site)}}.*.rpc.dispatch.report_run",
            "live.{{tag(site)}}.>"
        ]
    );
    assert_eq!(
        leaf.subscribe,
        ["down.{{tag(site)}}.*.*", "t.{{account-subject()}}.down.{{tag(site)}}.*.*", "_INBOX_{{tag(site)}}.>"]
    );
}

#[test]
fn edge_users_have_their_names_filled_in() {
    let site: SiteName = "oslo".parse().unwrap();
    let poller = edge_permissions(&site, &EdgeRole::Poller("p1".parse().unwrap()));
    assert_eq!(
        poller.publish,
        [
            "results.p1",
            "up.oslo.p1.rpc.registry.register",
            "up.oslo.p1.rpc.registry.renew",
            "up.oslo.p1.rpc.registry.deregister",
            "up.oslo.p1.rpc.dispatch.fetch_assignment",
            "up.oslo.p1.rpc.dispatch.fetch_runs",
            "up.oslo.p1.rpc.dispatch.report_run",
            "live.oslo.p1.*"
        ]
    );
    assert_eq!(poller.subscribe, ["down.oslo.p1.*", "_INBOX_oslo.p1.>"]);
    let forwarder = edge_permissions(&site, &EdgeRole::Forwarder);
    assert!(forwarder.publish.contains(&"up.oslo.fwd.results".to_owned()));
    assert!(forwarder.publish.contains(&"backfill.*".to_owned()));
    assert!(forwarder.publish.contains(&"up.oslo.fwd.rpc.registry.renew".to_owned()));
    assert!(!forwarder.publish.iter().any(|subject| subject.contains(".rpc.dispatch.")));
    assert!(!forwarder.publish.iter().any(|subject| subject.starts_with("results.")));
    assert!(forwarder.publish.iter().all(|s| !s.contains("PURGE")));
    assert!(forwarder.publish.iter().all(|s| !s.contains("STREAM.DELETE") && !s.contains("MSG.DELETE")));
    assert_eq!(forwarder.subscribe, ["_INBOX_oslo.fwd.>"]);
}
