//! What is on the hub, in files or in the database and is not what was rendered.

use std::fs;

use anyhow::Context;
use bulkhead_accounts::operator::SYSTEM;
use bulkhead_accounts::resolver::push;
use bulkhead_accounts::up::issued_settings;
use bulkhead_bus::{ConsumerSpec, Role, StreamName, StreamSpec};
use bulkhead_runtime::{Bus, now_ms};
use bulkhead_testkit::TestDeployment;
use bulkhead_testkit::deployment::TRIAL;

use crate::patient::Patient;

pub(crate) async fn streams_accounts_tenants_and_configuration(patient: &Patient) -> anyhow::Result<()> {
    a_stream_changed_by_hand(patient).await?;
    an_account_that_is_not_the_stores(patient).await?;
    a_tenant_without_an_account(patient).await?;
    files_edited_by_hand(patient).await?;
    patient.is_well(&["streams", "drift", "permissions"]).await?;
    Ok(())
}

async fn a_stream_changed_by_hand(patient: &Patient) -> anyhow::Result<()> {
    let platform = &patient.deployment.up.platform;
    let role = Role::Provisioner.name();
    let folder = platform.layout.provisioning();
    let settings = issued_settings(&folder, role, &platform.authority, platform.hub_urls.clone());
    let bus = Bus::connect(&settings, role).await?;
    let spec = StreamName::Results.spec();
    let consumer = ConsumerSpec { max_ack_pending: 7, ..spec.consumer };
    bus.ensure_stream(&StreamSpec { max_bytes: spec.max_bytes / 2, consumer, ..spec.clone() }, 1).await?;
    let expected = ["fail stream-configuration hub RESULTS", "fail consumer-configuration hub RESULTS"];
    let said = patient.has(&["streams"], &expected).await?;
    let found = said.of("stream-configuration", "hub RESULTS")?["found"].to_string();
    assert!(found.contains("max_bytes") && found.contains(&spec.max_bytes.to_string()), "{found}");
    bus.ensure_stream(&spec, 1).await?;
    patient.is_well(&["streams"]).await?;
    Ok(())
}

async fn an_account_that_is_not_the_stores(patient: &Patient) -> anyhow::Result<()> {
    let deployment = &patient.deployment;
    let original = deployment.account("acme-corp")?;
    let path = patient.home("nsc/stores/bulkhead/accounts/acme-corp/acme-corp.jwt");
    let kept = fs::read(&path)?;
    deployment.change_account("acme-corp", |body| body.limits.conn += 1).await?;
    let said = patient.has(&["drift"], &["fail account-rendered acme-corp"]).await?;
    let found = said.of("account-rendered", "acme-corp")?["found"].to_string();
    assert!(found.contains("limit conn is 501, not 500"), "{found}");
    // The store forgets, the hub does not.
    fs::write(&path, &kept)?;
    patient.has(&["drift"], &["fail account-in-force acme-corp"]).await?;
    push(&deployment.up.system, &original, 1).await?;

    deployment.change_account("acme-corp", |body| body.signing_keys.truncate(3)).await?;
    patient.has(&["permissions"], &["fail signing-keys acme-corp"]).await?;
    fs::write(&path, &kept)?;
    push(&deployment.up.system, &original, 1).await?;
    Ok(())
}

async fn a_tenant_without_an_account(patient: &Patient) -> anyhow::Result<()> {
    let key = nkeys::KeyPair::new_account().public_key();
    let sql = "insert into platform.tenant (tenant_id, account_key, slug, plan, state, retention_days, allows_unsigned)
               values (gen_random_uuid(), $1, 'ghost', 'free', 'active', 7, false)";
    sqlx::query(sql).bind(&key).execute(&patient.witness).await?;
    patient.has(&["drift"], &["fail tenant-account ghost"]).await?;
    sqlx::query("delete from platform.tenant where slug = 'ghost'").execute(&patient.witness).await?;
    let moves = [
        (
            "update platform.tenant set isolation = 'schema' where slug = 'xyz-inc'",
            "update platform.tenant set isolation = 'shared' where slug = 'xyz-inc'",
        ),
        (
            "insert into platform.tenant_move (tenant_id, isolation) select tenant_id, 'schema' from platform.tenant where slug = 'xyz-inc'",
            "delete from platform.tenant_move",
        ),
    ];
    for (break_it, mend_it) in moves {
        sqlx::query(break_it).execute(&patient.witness).await?;
        patient.has(&["drift"], &["warn tenant-rows xyz-inc"]).await?;
        sqlx::query(mend_it).execute(&patient.witness).await?;
    }
    sqlx::query("update shared._migrations set checksum = '\\x00'::bytea || checksum")
        .execute(&patient.witness)
        .await?;
    patient.has(&["drift"], &["fail migrations shared"]).await?;
    sqlx::query("update shared._migrations set checksum = substr(checksum, 2)").execute(&patient.witness).await?;
    Ok(())
}

async fn files_edited_by_hand(patient: &Patient) -> anyhow::Result<()> {
    let edits = [
        (
            "hub/hub.conf",
            "\nmax_connections: 9\n",
            &["fail server-configuration hub/hub.conf", "warn configuration-loaded hub-1"][..],
        ),
        (
            "sites/acme-corp/oslo/leaf.conf",
            "\n# by hand\n",
            &["fail server-configuration sites/acme-corp/oslo/leaf.conf"],
        ),
        ("core/core.toml", "\n# by hand\n", &["warn settings-file core/core.toml"]),
    ];
    for (path, line, expected) in edits {
        let path = patient.home(path);
        let kept = fs::read(&path)?;
        fs::write(&path, [&kept, line.as_bytes()].concat())?;
        patient.has(&["drift"], expected).await?;
        fs::write(&path, kept)?;
    }
    let path = patient.home("sites/acme-corp/oslo/leaf.conf");
    let kept = fs::read_to_string(&path)?;
    fs::write(&path, kept.replace("results.p1", "results.*"))?;
    patient.has(&["permissions"], &["fail leaf-users acme-corp/oslo"]).await?;
    fs::write(&path, kept)?;
    Ok(())
}

/// Made and pushed, then gone from the store: the hub still admits its users. Nothing takes it back, so this comes last.
pub(crate) async fn an_account_that_nobody_knows(patient: &Patient) -> anyhow::Result<()> {
    let platform = &patient.deployment.up.platform;
    let body = patient.deployment.account("acme-corp")?.claims.nats;
    let stranger = platform.operator.ensure_account("stranger", &Role::TENANT, now_ms() / 1_000, |_, _| body)?;
    push(&patient.deployment.up.system, &stranger, 1).await?;
    fs::remove_dir_all(patient.home("nsc/stores/bulkhead/accounts/stranger"))?;
    patient.has(&["drift"], &[&format!("fail account-unknown {}", stranger.key)]).await?;
    Ok(())
}

pub(crate) async fn an_older_system_account(deployment: TestDeployment) -> anyhow::Result<()> {
    let operator = &deployment.up.platform.operator;
    let newest = operator.system()?;
    let mut body = newest.claims.nats.clone();
    let key = body.signing_keys.first_mut().context("a signing key")?;
    let bulkhead_claims::ScopedKey::Scoped(scope) = key else { anyhow::bail!("a plain key") };
    scope.template.publish.allow.retain(|subject| !subject.contains("HEALTHZ"));
    let older = operator.sign_body(SYSTEM, body, now_ms() / 1_000)?;
    assert_ne!(older.claims.nats, newest.claims.nats);
    let again = TestDeployment::start_in(deployment.stop_and_keep().await?, &TRIAL, |_| {}).await?;
    assert_eq!(again.up.platform.operator.system()?.claims.nats, newest.claims.nats);
    let patient = Patient { witness: again.witness().await?, deployment: again };
    patient.deployment.wait_for_results(&patient.witness).await?;
    // The hub answers every question, so that its preloaded token is the new one.
    patient.is_well(&["links", "disks", "drift", "permissions"]).await?;
    patient.deployment.stop().await
}
