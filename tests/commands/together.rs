//! Several operators at once on one store.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use bulkhead_tests::operator::Operator;
use futures_util::future::join_all;

use crate::nothing_is_to_be_done;

/// What a push renders INTAKE accounts from does not change under it: it waits for whoever is changing it.
pub(crate) async fn a_push_waits_for_whoever_places_live_streams(operator: &Operator<'_>) -> anyhow::Result<()> {
    let file = File::create(operator.home.join("intake/lock"))?;
    file.lock()?;
    let inode = format!(":{} ", file.metadata()?.ino());
    let is_waited_for = async {
        loop {
            let locks = tokio::fs::read_to_string("/proc/locks").await?;
            if locks.lines().any(|line| line.contains("->") && line.contains(&inode)) {
                return file.unlock();
            }
            tokio::task::yield_now().await;
        }
    };
    let push = operator.expect(0, &["push"]);
    tokio::pin!(push);
    tokio::select! {
        pushed = &mut push => anyhow::bail!("it did not wait: {pushed:?}"),
        waited = tokio::time::timeout(Duration::from_secs(60), is_waited_for) => waited??,
    }
    push.await?;
    nothing_is_to_be_done(operator).await
}

pub(crate) async fn operators_at_once_wait_for_each_other(operator: &Operator<'_>) -> anyhow::Result<()> {
    // Different tenants: each is made, one after the other, and a push in between changes nothing.
    let lines: [&[&str]; 4] = [
        &["tenant", "add", "first-inc"],
        &["tenant", "add", "second-inc", "--plan", "pro"],
        &["push"],
        &["tenant", "edit", "acme-corp", "--name", "Acme at once"],
    ];
    for (ended, line) in join_all(lines.map(|line| operator.expect(0, line))).await.into_iter().zip(lines) {
        let (rows, _) = ended?;
        let named = rows.len() == 1 && (line[0] == "push" || rows[0]["tenant"] == line[2]);
        anyhow::ensure!(named, "{line:?}: {rows:?}");
    }
    for slug in ["first-inc", "second-inc"] {
        anyhow::ensure!(operator.state_of(slug).await?.is_some_and(|(state, _)| state == "active"), "{slug}");
    }
    nothing_is_to_be_done(operator).await?;

    // The same tenant: exactly one makes it, and the others are told that it is there.
    let same: [&[&str]; 4] = [&["tenant", "add", "same-inc"]; 4];
    let ended = join_all(same.map(|line| operator.run(line))).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut codes: Vec<Option<i32>> = ended.iter().map(|output| output.status.code()).collect();
    codes.sort_unstable();
    anyhow::ensure!(codes == [Some(0), Some(4), Some(4), Some(4)], "{ended:?}");
    for output in ended.iter().filter(|output| output.status.code() == Some(4)) {
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.stdout.is_empty() && said.contains("same-inc is there already"), "{said}");
    }
    // Changes of one tenant: each is made whole, and the last one stands.
    let plans: [&[&str]; 3] = ["pro", "free", "enterprise"].map(|plan| match plan {
        "pro" => &["tenant", "plan", "same-inc", "pro"] as &[&str],
        "free" => &["tenant", "plan", "same-inc", "free"],
        _enterprise => &["tenant", "plan", "same-inc", "enterprise"],
    });
    join_all(plans.map(|line| operator.expect(0, line))).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    nothing_is_to_be_done(operator).await
}
