//! A deployment under examination: what the doctor says of it, and waiting until it is well again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, TestDeployment};
use serde_json::Value;
use sqlx::PgPool;

/// Looks that depend on the machine that the test runs on, whatever the deployment is like.
pub(crate) const MACHINES_OWN: [&str; 5] =
    ["disk-space", "disk-inodes", "disk-promise", "clock-synchronised", "postgres-version"];
/// The doctor never takes longer, whatever hangs.
const DOCTOR_LIMIT: Duration = Duration::from_secs(45);

/// What the doctor said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) lines: Vec<Value>,
}

impl Said {
    /// What is wrong, as `level look subject`, without what is the machine's own.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let is_wrong = |line: &&Value| line["level"] == "warn" || line["level"] == "fail";
        let is_own = |line: &&Value| MACHINES_OWN.iter().any(|look| line["look"] == *look);
        let word = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let shown = |line: &Value| format!("{} {} {}", word(line, "level"), word(line, "look"), word(line, "subject"));
        self.lines.iter().filter(is_wrong).filter(|line| !is_own(line)).map(shown).collect()
    }

    /// The finding of a look about a subject.
    pub(crate) fn of(&self, look: &str, subject: &str) -> anyhow::Result<&Value> {
        let found = self.lines.iter().find(|line| line["look"] == look && line["subject"] == subject);
        found.with_context(|| format!("nothing was said of {look} {subject}: {:?}", self.wrong()))
    }

    pub(crate) fn level(&self, look: &str, subject: &str) -> anyhow::Result<&str> {
        self.of(look, subject)?["level"].as_str().context("level")
    }
}

pub(crate) struct Patient {
    pub(crate) deployment: TestDeployment,
    pub(crate) witness: PgPool,
}

impl Patient {
    pub(crate) async fn admit() -> anyhow::Result<Self> {
        let deployment = TestDeployment::start().await?;
        let witness = deployment.witness().await?;
        deployment.wait_for_results(&witness).await?;
        Ok(Self { deployment, witness })
    }

    pub(crate) fn home(&self, path: &str) -> PathBuf {
        self.deployment.home().join(path)
    }

    /// Runs the real program; `areas` empty is all of them.
    pub(crate) async fn ask(&self, areas: &[&str]) -> anyhow::Result<Said> {
        let mut args = vec!["doctor", "--json"];
        args.extend(areas.iter().flat_map(|area| ["--area", area]));
        let began = Instant::now();
        let output = self.deployment.bulkhead(&args).await?;
        assert!(began.elapsed() < DOCTOR_LIMIT, "the doctor took {:?}", began.elapsed());
        let text = String::from_utf8(output.stdout).context("read what it said")?;
        let lines = text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
        let said = Said { code: output.status.code().context("exit code")?, lines: lines.collect::<Result<_, _>>()? };
        let levels: Vec<&str> = said.lines.iter().filter_map(|line| line["level"].as_str()).collect();
        let expected = if levels.contains(&"fail") { 3 } else { i32::from(levels.contains(&"warn")) * 2 };
        assert_eq!(said.code, expected, "the exit code says something else than the findings");
        Ok(said)
    }

    /// Asks until `expected` are the findings, and nothing else.
    pub(crate) async fn has(&self, areas: &[&str], expected: &[&str]) -> anyhow::Result<Said> {
        let waited = eventually("the findings", LIMIT, || async {
            let said = self.ask(areas).await.map_err(|error| format!("{error:#}"))?;
            let wrong = said.wrong();
            if wrong == expected { Ok(said) } else { Err(format!("{wrong:?}")) }
        });
        waited.await.with_context(|| format!("{expected:?} in {areas:?}"))
    }

    pub(crate) async fn is_well(&self, areas: &[&str]) -> anyhow::Result<Said> {
        self.has(areas, &[]).await
    }
}
