//! Checks that poller-dispatch shares out: something to look at, and what became of their slots.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::payload::{GapKind, GapRow};
use bulkhead_runtime::{LimitReached, eventually, utc_of_ms};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;

use crate::operator::Operator;

/// What may still come is waited for: a slot is judged after a minute and its interval.
pub const SETTLED_LIMIT: Duration = Duration::from_secs(180);
/// What `check gaps` ends with when there are silent slots.
const SILENT: i32 = 2;

/// Something that accepts every connection, for as long as it is there.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl Target {
    /// # Errors
    /// When there is no port.
    pub async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
        let address = listener.local_addr().context("where it listens")?;
        let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        Ok(Self { address, accepting })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A file for `check apply`: each of `names` looks at `port` every `interval_s` at all of the sites, at addresses of its own so
/// that they are shared out one by one.
#[must_use]
pub fn checks_file(names: &[String], sites: &[&str], port: u16, interval_s: u64) -> String {
    let check = |(number, name): (usize, &String)| -> Value {
        json!({"name": name, "type": "tcp", "interval": format!("{interval_s}s"), "timeout": "500ms",
            "target": format!("127.0.0.{}:{port}", number % 200 + 1), "sites": sites})
    };
    let checks: Vec<Value> = names.iter().enumerate().map(check).collect();
    json!({ "checks": checks }).to_string()
}

fn moment(ms: i64) -> anyhow::Result<String> {
    utc_of_ms(ms).context("a time")?.format(&Rfc3339).context("write a time")
}

/// What `bulkhead check gaps` says of a period.
///
/// # Errors
/// When it is not answered, or ends otherwise than its rows say.
pub async fn ask_gaps(
    operator: Operator<'_>,
    tenant: &str,
    (since_ms, until_ms): (i64, i64),
) -> anyhow::Result<Vec<GapRow>> {
    let (since, until) = (moment(since_ms)?, moment(until_ms)?);
    let output = operator.run(&["check", "gaps", "--tenant", tenant, "--since", &since, "--until", &until]).await?;
    let text = String::from_utf8(output.stdout).context("read gaps")?;
    let rows: Result<Vec<GapRow>, _> = text.lines().map(serde_json::from_str).collect();
    let rows = rows.with_context(|| format!("read gaps: {text}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = if rows.iter().any(|row| row.kind == GapKind::Silent) { SILENT } else { 0 };
    anyhow::ensure!(output.status.code() == Some(code), "check gaps: {} and not {code}: {said}", output.status);
    Ok(rows)
}

/// The same once no slot of the period is `pending` any more.
///
/// # Errors
/// When that takes too long; the error names a slot.
pub async fn settled_gaps(
    operator: Operator<'_>,
    tenant: &str,
    period_ms: (i64, i64),
) -> Result<Vec<GapRow>, LimitReached> {
    eventually("slots that are not pending any more", SETTLED_LIMIT, || async {
        let rows = ask_gaps(operator, tenant, period_ms).await.map_err(|error| format!("{error:#}"))?;
        match rows.iter().find(|row| row.kind == GapKind::Pending) {
            None => Ok(rows),
            Some(row) => Err(format!("{row:?}")),
        }
    })
    .await
}
