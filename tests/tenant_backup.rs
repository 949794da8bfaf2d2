//! One tenant's rows in a file and back, as an operator says it, on a deployment whose pollers go on measuring.

use std::path::Path;

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, TestDeployment};
use bulkhead_tests::operator::Operator;
use bulkhead_tests::slots::Slots;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgPool;

/// Rows of results of a tenant up to a moment, as text that does not say whose they are.
async fn text_of(witness: &PgPool, slug: &str, until_ms: i64) -> anyhow::Result<Vec<String>> {
    let sql =
        "select (to_jsonb(r) - 'tenant_id')::text from everywhere.result r join platform.tenant t using (tenant_id)
               where t.slug = $1 and r.received_at <= to_timestamp($2::float8 / 1000) order by 1";
    sqlx::query_scalar(sql).bind(slug).bind(until_ms).fetch_all(witness).await.context("read rows")
}

async fn has_slots(witness: &PgPool) -> Result<(), String> {
    let sql = "select coalesce(min(slots), 0) from (
                 select count(*) as slots from tenant_acme_corp.result group by check_name, vantage) c";
    let slots: i64 = sqlx::query_scalar(sql).fetch_one(witness).await.map_err(|error| error.to_string())?;
    if slots > 3 { Ok(()) } else { Err(format!("a check has {slots} slots")) }
}

fn rows_of(table: &str, manifest: &Value) -> u64 {
    manifest["tables"][table]["rows"].as_u64().unwrap_or(0)
}

async fn files_are_judged(operator: &Operator<'_>, folder: &Path) -> anyhow::Result<()> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (plain, sealed, torn, changed) = (path("acme.rows"), path("sealed"), path("torn"), path("changed"));
    let passphrase = path("passphrase");
    bulkhead_accounts::files::write_secret(Path::new(&passphrase), b"correct horse\n")?;
    operator.expect(0, &["tenant", "backup", "acme-corp", "-o", &sealed, "--passphrase-file", &passphrase]).await?;
    let (_, said) = operator.expect(4, &["tenant", "restore", &sealed, "--rehearse"]).await?;
    anyhow::ensure!(said.contains("is sealed") && said.contains("--passphrase-file"), "{said}");
    operator.expect(0, &["tenant", "restore", &sealed, "--rehearse", "--passphrase-file", &passphrase]).await?;
    let (_, said) = operator.expect(4, &["tenant", "backup", "acme-corp", "-o", &plain]).await?;
    anyhow::ensure!(said.contains("is there already"), "{said}");
    let bytes = std::fs::read(&plain)?;
    std::fs::write(&torn, &bytes[..bytes.len() / 2])?;
    let mut other = bytes.clone();
    let place = other.windows(4).position(|four| four == b"tcp,").context("a row of a tcp check")?;
    other[place] = b'x';
    std::fs::write(&changed, other)?;
    for (bad, why) in [
        (&torn, "damaged or cut short"),
        (&changed, "not what its manifest says"),
        (&passphrase, "is not a backup of a tenant"),
    ] {
        for how in ["--rehearse", "--in-place"] {
            let (_, said) = operator.expect(4, &["tenant", "restore", bad, how]).await?;
            anyhow::ensure!(said.contains(why), "{bad}: {said}");
        }
    }
    let (_, said) = operator.expect(4, &["tenant", "restore", &plain]).await?;
    anyhow::ensure!(said.contains("--in-place"), "{said}");
    Ok(())
}

async fn a_copy_is_made(
    operator: &Operator<'_>,
    witness: &PgPool,
    (file, manifest): (&str, &Value),
) -> anyhow::Result<()> {
    operator.expect(4, &["tenant", "restore", file, "--as", "xyz-inc"]).await?;
    let (would, _) = operator.expect(0, &["tenant", "restore", file, "--as", "acme-copy", "--dry-run"]).await?;
    anyhow::ensure!(would[0]["would"] == "copy", "{would:?}");
    operator.expect(4, &["tenant", "show", "acme-copy"]).await?;
    // Cut short when its tenant is there and its rows are on their way, it goes on.
    operator
        .kill_when_it_says(&["tenant", "restore", file, "--as", "acme-copy"], "bringing and comparing result")
        .await?;
    let (made, _) = operator.expect(0, &["tenant", "restore", file, "--as", "acme-copy"]).await?;
    anyhow::ensure!(made[0]["brought"]["rows"]["result"] == rows_of("result", manifest), "{made:?}");
    let taken_ms = manifest["taken_ms"].as_i64().context("when it was taken")?;
    // What was taken is of one moment, and rows that were on their way then have an earlier time.
    let (source, copy) =
        (text_of(witness, "acme-corp", taken_ms).await?, text_of(witness, "acme-copy", i64::MAX / 1000).await?);
    anyhow::ensure!(copy.iter().all(|row| source.contains(row)), "rows of the copy that the source does not have");
    assert_eq!(copy.len() as u64, rows_of("result", manifest));
    let (_, said) = operator.expect(4, &["tenant", "restore", file, "--as", "acme-copy"]).await?;
    anyhow::ensure!(said.contains("there already"), "{said}");
    let (shown, _) = operator.expect(0, &["tenant", "show", "acme-copy"]).await?;
    anyhow::ensure!(shown[0]["tenant"]["plan"] == "enterprise@1", "{shown:?}");
    let sites: Vec<&String> = shown[0]["tenant"]["sites"].as_object().context("its sites")?.keys().collect();
    assert_eq!(sites, ["oslo"]);
    let (rows, _) = operator.expect(0, &["results", "list", "--tenant", "acme-copy", "--limit", "5"]).await?;
    assert_eq!(rows.len(), 5, "core answers for the copy");
    operator.expect(0, &["doctor", "--area", "permissions", "--area", "drift"]).await?;
    Ok(())
}

async fn it_is_exported_and_destroyed(operator: &Operator<'_>, folder: &Path, file: &str) -> anyhow::Result<()> {
    let export = folder.join("last.rows").display().to_string();
    let (_, said) = operator.expect(4, &["tenant", "offboard", "acme-copy", "--purge", "--yes"]).await?;
    anyhow::ensure!(said.contains("--export FILE") && said.contains("--no-export"), "{said}");
    // What cannot be done is said before anything is.
    for (bad, code) in [(file, 4), ("/nowhere/at/all.rows", 1)] {
        operator.expect(code, &["tenant", "offboard", "acme-copy", "--purge", "--export", bad, "--yes"]).await?;
    }
    let state = operator.state_of("acme-copy").await?.context("it is there")?;
    anyhow::ensure!(state.0 == "active", "{state:?}");
    let (ended, _) =
        operator.expect(0, &["tenant", "offboard", "acme-copy", "--purge", "--export", &export, "--yes"]).await?;
    let evidence = &ended[0]["evidence"];
    let token = std::fs::read_to_string(ended[0]["file"].as_str().context("evidence")?)?;
    let signed = bulkhead_claims::decode_json(&token)?;
    anyhow::ensure!(&signed.nats["offboarding"] == evidence, "{signed:?}");
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(std::fs::read(&export)?));
    anyhow::ensure!(evidence["export"]["sha256"] == hash, "{evidence}");
    let (rehearsed, _) = operator.expect(0, &["tenant", "restore", &export, "--rehearse"]).await?;
    anyhow::ensure!(rehearsed[0]["manifest"]["tables"] == evidence["tables"], "{rehearsed:?} {evidence}");
    for table in ["result", "check_state"] {
        anyhow::ensure!(evidence["rows"][table] == evidence["tables"][table]["rows"], "{table}: {evidence}");
    }
    let (_, said) = operator.expect(4, &["tenant", "restore", &export, "--in-place"]).await?;
    anyhow::ensure!(said.contains("not there any more"), "{said}");
    operator.expect(0, &["tenant", "restore", &export, "--as", "acme-copy"]).await?;
    let again = folder.join("again.rows").display().to_string();
    let (again, _) = operator.expect(0, &["tenant", "backup", "acme-copy", "-o", &again]).await?;
    anyhow::ensure!(again[0]["tables"]["result"] == evidence["tables"]["result"], "the same rows: {again:?}");
    Ok(())
}

#[tokio::test]
async fn a_tenants_rows_go_into_a_file_and_come_back() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    let operator = Operator { home: deployment.home() };
    let folder = tempfile::tempdir()?;
    deployment.wait_for_results(&witness).await?;
    eventually("some slots of history", LIMIT, || has_slots(&witness)).await?;
    let file = folder.path().join("acme.rows").display().to_string();
    let (manifest, said) = operator.expect(0, &["tenant", "backup", "acme-corp", "-o", &file]).await?;
    anyhow::ensure!(said.contains("not sealed"), "{said}");
    let manifest = &manifest[0];
    anyhow::ensure!(rows_of("result", manifest) > 0, "{manifest}");
    files_are_judged(&operator, folder.path()).await?;
    a_copy_is_made(&operator, &witness, (&file, manifest)).await?;

    // Rows are lost, and the ledger of slots sees it; they come back while pollers go on.
    let lose = "delete from tenant_acme_corp.result where (check_name, vantage, slot) in (
                  select check_name, vantage, slot from (
                    select *, row_number() over (partition by check_name, vantage order by slot) as place
                    from tenant_acme_corp.result) r where place = 2)";
    sqlx::query(lose).execute(&witness).await?;
    anyhow::ensure!(!Slots::ALL.gaps(&witness).await?.is_empty(), "a missing slot goes unseen");
    let (back, _) = operator.expect(0, &["tenant", "restore", &file, "--in-place"]).await?;
    anyhow::ensure!(back[0]["brought"]["rows"]["result"] == rows_of("result", manifest), "{back:?}");
    deployment.wait_for_results(&witness).await.context("results go on")?;
    Slots::ALL.wait_until_gapless(&witness).await?;

    it_is_exported_and_destroyed(&operator, folder.path(), &file).await?;
    deployment.stop().await
}
