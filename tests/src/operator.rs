//! The `bulkhead` program as an operator uses it, on the home of a deployment.

use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::Context;
use bulkhead_testkit::deployment::program;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// Runs commands; each prints JSON.
#[derive(Debug, Clone, Copy)]
pub struct Operator<'a> {
    pub home: &'a Path,
}

impl Operator<'_> {
    /// # Errors
    /// When the program cannot be run.
    pub async fn run(&self, line: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(program("bulkhead")?);
        command.arg("--home").arg(self.home).arg("--json").args(line).stdin(Stdio::null()).kill_on_drop(true);
        command.output().await.context("run bulkhead")
    }

    /// Runs a command that has to end with `code`; returns what it printed, and what it said beside it.
    ///
    /// # Errors
    /// When it ends with another code, or prints what is no JSON.
    pub async fn expect(&self, code: i32, line: &[&str]) -> anyhow::Result<(Vec<Value>, String)> {
        let output = self.run(line).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8(output.stdout)?;
        let ended = output.status;
        anyhow::ensure!(ended.code() == Some(code), "{line:?}: {ended:?} and not {code}: {said}\n{text}");
        let rows = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        Ok((rows.with_context(|| format!("{line:?}: {text}"))?, said))
    }

    /// Says it, for people, and kills it once it has said `word`; what it did until then is done.
    ///
    /// # Errors
    /// When it ends before it says that.
    pub async fn kill_when_it_says(&self, line: &[&str], word: &str) -> anyhow::Result<()> {
        let mut command = Command::new(program("bulkhead")?);
        command.arg("--home").arg(self.home).args(line);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("its messages")?).lines();
        while let Some(line) = lines.next_line().await? {
            if line.contains(word) {
                return child.kill().await.context("kill it");
            }
        }
        anyhow::bail!("it never said {word:?}")
    }

    /// State and account of a tenant; `None` where there is no such tenant.
    ///
    /// # Errors
    /// When the tenants cannot be listed.
    pub async fn state_of(&self, tenant: &str) -> anyhow::Result<Option<(String, String)>> {
        let (rows, _) = self.expect(0, &["tenant", "list"]).await?;
        let row = rows.iter().find(|row| row["tenant"] == tenant);
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        Ok(row.map(|row| (text(row, "state"), text(row, "account"))))
    }
}
