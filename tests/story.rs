//! The main job: real checks of two tenants end up in the database under the right tenant, and what the command line
//! shows is what the database holds.

use std::collections::BTreeSet;

use anyhow::Context;
use bulkhead_testkit::TestDeployment;
use serde_json::Value;
use sqlx::PgPool;

/// What identifies a stored slot and what was measured in it.
type Slot = (String, String, i64, String, String, Option<i64>);

async fn slots_in_database(witness: &PgPool, tenant: &str) -> anyhow::Result<BTreeSet<Slot>> {
    let sql =
        "select r.vantage, r.check_name, (extract(epoch from r.slot) * 1000)::int8, r.kind, r.outcome, r.latency_us
               from everywhere.result r join platform.tenant t using (tenant_id) where t.slug = $1";
    let rows: Vec<Slot> = sqlx::query_as(sql).bind(tenant).fetch_all(witness).await.context("read results")?;
    Ok(rows.into_iter().collect())
}

fn slot_of(row: &Value) -> anyhow::Result<Slot> {
    let text = |field: &str| row[field].as_str().map(str::to_owned).with_context(|| format!("{field} in {row}"));
    let slot = row["slot_ms"].as_i64().context("slot_ms")?;
    Ok((text("site")?, text("check")?, slot, text("kind")?, text("outcome")?, row["latency_us"].as_i64()))
}

async fn slots_shown(deployment: &TestDeployment, args: &[&str]) -> anyhow::Result<BTreeSet<Slot>> {
    let mut all = vec!["results", "list", "--limit", "1000"];
    all.extend(args);
    deployment.rows(&all).await?.iter().map(slot_of).collect()
}

/// Rows come in while we look, so what is shown lies between what was stored before and what was stored after.
async fn check_shown(deployment: &TestDeployment, witness: &PgPool, tenant: &str, args: &[&str]) -> anyhow::Result<()> {
    let before = slots_in_database(witness, tenant).await?;
    let shown = slots_shown(deployment, args).await?;
    let after = slots_in_database(witness, tenant).await?;
    assert!(!before.is_empty(), "{tenant} has no results");
    assert!(shown.is_superset(&before), "not shown: {:?}", before.difference(&shown).collect::<Vec<_>>());
    assert!(shown.is_subset(&after), "shown but not stored: {:?}", shown.difference(&after).collect::<Vec<_>>());
    Ok(())
}

fn field<'a>(rows: &'a [Value], name: &str) -> Vec<&'a str> {
    rows.iter().filter_map(|row| row[name].as_str()).collect()
}

#[tokio::test]
async fn results_of_two_tenants_are_stored_and_shown_under_their_own_names() -> anyhow::Result<()> {
    // Something of the user's own is watched as well.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let own_target = format!("tcp://{}", listener.local_addr()?);
    let tenants = ["acme-corp enterprise oslo/p1", "xyz-inc free lima/p1"];
    let deployment = TestDeployment::start_with(&tenants, &[&own_target]).await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;

    for (tenant, site) in [("acme-corp", "oslo"), ("xyz-inc", "lima")] {
        let sites: BTreeSet<String> =
            slots_in_database(&witness, tenant).await?.into_iter().map(|(site, ..)| site).collect();
        assert_eq!(sites, BTreeSet::from([site.to_owned()]), "{tenant}");
        check_shown(&deployment, &witness, tenant, &["--tenant", tenant]).await?;
        // A person of the tenant sees the same without naming it.
        let profile = deployment.up.layout.profile(&format!("{tenant}-admin"));
        let profile = profile.to_str().context("profile path")?;
        check_shown(&deployment, &witness, tenant, &["--profile", profile]).await?;
        let rows = deployment.rows(&["status", "--profile", profile]).await?;
        assert_eq!(field(&rows, "tenant"), [tenant]);
    }
    check_everything_measured(&deployment, &witness, &own_target).await?;
    check_lists(&deployment).await?;
    check_past(&deployment, &witness).await?;
    deployment.stop().await
}

/// Each kind of check measured something real: it answered, and its latency is stored.
async fn check_everything_measured(
    deployment: &TestDeployment,
    witness: &PgPool,
    own_target: &str,
) -> anyhow::Result<()> {
    let rows = deployment.rows(&["results", "list", "--limit", "1000"]).await?;
    for kind in ["icmp", "tcp", "http"] {
        let measured = rows.iter().find(|row| row["kind"] == kind && row["outcome"] == "ok");
        let measured = measured.with_context(|| format!("no {kind} check answered"))?;
        assert!(measured["latency_us"].as_i64().is_some_and(|us| us > 0), "{measured}");
        assert_eq!(measured["attested"], true, "{measured}");
    }
    assert!(field(&rows, "kind").contains(&"dns"), "the resolver was not asked");
    let port = own_target.rsplit(':').next().context("port")?;
    assert!(rows.iter().any(|row| row["check"].as_str().is_some_and(|check| check.ends_with(port))), "{own_target}");
    let unattested: i64 =
        sqlx::query_scalar("select count(*) from everywhere.result where not attested").fetch_one(witness).await?;
    assert_eq!(unattested, 0);
    Ok(())
}

/// What the past holds of each tenant is what the database held when it was asked, and never the other tenant's.
async fn check_past(deployment: &TestDeployment, witness: &PgPool) -> anyhow::Result<()> {
    let sum = |rows: &[Value], name: &str| rows.iter().filter_map(|row| row[name].as_u64()).sum::<u64>();
    for (tenant, site) in [("acme-corp", "oslo"), ("xyz-inc", "lima")] {
        let own = ["--tenant", tenant];
        let before = slots_in_database(witness, tenant).await?;
        let check = before.first().map(|slot| slot.1.clone()).context("a check")?;
        let of_check = |slots: &BTreeSet<Slot>| slots.iter().filter(|slot| slot.1 == check).count() as u64;
        let uptime = deployment.rows(&[&["check", "uptime"], &own[..]].concat()).await?;
        let history = deployment.rows(&[&["check", "history", &check, "--bucket", "5m"], &own[..]].concat()).await?;
        let poller = deployment.rows(&["poller", "history", &format!("{tenant}/{site}/p1"), "--hours", "2"]).await?;
        let after = slots_in_database(witness, tenant).await?;
        let counted: u64 = ["ok", "fail", "error", "missed"].into_iter().map(|outcome| sum(&uptime, outcome)).sum();
        for (what, shown, stored) in [
            ("uptime", counted, before.len() as u64..=after.len() as u64),
            ("history", sum(&history, "results"), of_check(&before)..=of_check(&after)),
            ("poller", sum(&poller, "results"), before.len() as u64..=after.len() as u64),
        ] {
            assert!(stored.contains(&shown), "{what} of {tenant}: {shown} is not in {stored:?}");
        }
        for rows in [&uptime, &history, &poller] {
            assert_eq!(field(rows, "tenant").into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([tenant]));
            assert_eq!(field(rows, "site").into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([site]));
        }
        assert_eq!(sum(&poller, "attested"), sum(&poller, "results"));
        // A tenant's own person needs to name nobody, and may name nobody else.
        let profile = deployment.up.layout.profile(&format!("{tenant}-admin"));
        let profile = profile.to_str().context("profile path")?;
        let rows = deployment.rows(&["check", "uptime", "--profile", profile]).await?;
        assert_eq!(rows.len(), uptime.len());
    }
    let acme = deployment.up.layout.profile("acme-corp-admin");
    let acme = acme.to_str().context("profile path")?;
    for (code, why, args) in [
        (7, "tenant", vec!["check", "uptime", "--tenant", "xyz-inc", "--profile", acme]),
        (7, "tenant", vec!["poller", "history", "xyz-inc/lima/p1", "--profile", acme]),
        (4, "one at a time", vec!["check", "uptime"]),
        (4, "write 87 s or more", vec!["check", "history", "hub", "--tenant", "acme-corp", "--bucket", "1s"]),
        (
            4,
            "has to end after it begins",
            vec!["check", "uptime", "--tenant", "acme-corp", "--since", "2999-01-01T00:00:00Z"],
        ),
    ] {
        let output = deployment.bulkhead(&args).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(why), "{args:?}: {:?} {said}", output.status);
    }
    let output = deployment.bulkhead(&["check", "uptime", "--tenant", "acme-corp"]).await?;
    let text = String::from_utf8(output.stdout)?;
    assert!(text.contains("UPTIME") && text.contains("COVERAGE"), "{text}");
    Ok(())
}

async fn check_lists(deployment: &TestDeployment) -> anyhow::Result<()> {
    let tenants = deployment.rows(&["tenant", "list"]).await?;
    assert_eq!(field(&tenants, "tenant"), ["acme-corp", "xyz-inc"]);
    assert_eq!(field(&tenants, "plan"), ["enterprise", "free"]);
    assert_eq!(field(&tenants, "isolation"), ["schema", "shared"]);
    let pollers = deployment.rows(&["poller", "list", "--tenant", "xyz-inc"]).await?;
    assert_eq!((field(&pollers, "site"), field(&pollers, "poller")), (vec!["lima"], vec!["p1"]));
    assert!(pollers[0]["last_batch_ms"].as_i64().is_some());
    let status = deployment.rows(&["status"]).await?;
    assert!(status.iter().all(|row| row["dead_letters"] == 0), "{status:?}");
    // Human output has a header and a line for each row.
    let output = deployment.bulkhead(&["tenant", "list"]).await?;
    let text = String::from_utf8(output.stdout)?;
    assert!(text.lines().count() == 3 && text.contains("TENANT") && text.contains("acme-corp"), "{text}");
    Ok(())
}
