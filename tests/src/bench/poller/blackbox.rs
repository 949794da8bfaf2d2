//! blackbox_exporter, asked as Prometheus asks it: each target once an interval at its own moment, over connections that are kept.
//! Answers are not compressed, which spares it what Prometheus would cost it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::up::Child;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, free_ports, scrape};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::ours::start_child;
use super::{Counts, ProbeKind, Work};
use crate::bench::identity::beside;

#[derive(Debug, Default)]
struct Answers {
    ok: AtomicU64,
    failed: AtomicU64,
}

pub(super) struct Blackbox {
    _folder: TempDir,
    exporter: Child,
    answers: Arc<Answers>,
    over: watch::Sender<bool>,
    asking: JoinHandle<anyhow::Result<()>>,
}

fn module(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Tcp => "tcp",
        ProbeKind::Http => "http",
        ProbeKind::Icmp => "icmp",
    }
}

/// One target's questions, as one target's scrapes of Prometheus.
async fn ask(client: reqwest::Client, url: String, answers: Arc<Answers>, (first, every): (Instant, Duration)) {
    let mut pace = interval_at(first, every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        pace.tick().await;
        let page = async { client.get(&url).send().await?.text().await };
        let is_ok = page.await.is_ok_and(|page| page.contains("\nprobe_success 1\n"));
        let count = if is_ok { &answers.ok } else { &answers.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn ask_all(
    urls: Vec<String>,
    every: Duration,
    answers: Arc<Answers>,
    mut over: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    // Nothing is asked over TLS, but the client does not begin without.
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let builder = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(every);
    let client = builder.build().context("make an HTTP client")?;
    let (began, count) = (Instant::now(), u32::try_from(urls.len().max(1))?);
    let mut asking = JoinSet::new();
    for (number, url) in (0..).zip(urls) {
        let first = began + every * number / count;
        asking.spawn(ask(client.clone(), url, Arc::clone(&answers), (first, every)));
    }
    // Dropping the tasks ends them.
    let _ = over.wait_for(|over| *over).await;
    Ok(())
}

impl Blackbox {
    pub(super) async fn start(program: &Path, work: &Work<'_>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let [port] = free_ports()?;
        let timeout_ms = work.timeout_ms;
        let config = format!(
            "modules:\n  tcp: {{ prober: tcp, timeout: {timeout_ms}ms }}\n  http: {{ prober: http, timeout: {timeout_ms}ms }}\n\
             \x20 icmp: {{ prober: icmp, timeout: {timeout_ms}ms, icmp: {{ preferred_ip_protocol: ip4, dont_fragment: true }} }}\n"
        );
        let file = folder.path().join("blackbox.yml");
        std::fs::write(&file, config).context("write blackbox_exporter's configuration")?;
        let (file, listen) =
            (format!("--config.file={}", file.display()), format!("--web.listen-address=127.0.0.1:{port}"));
        let args = [file.as_str(), listen.as_str(), "--log.level=error"];
        let mut exporter = start_child(folder.path(), "blackbox_exporter", program, &args)?;
        let up = eventually("blackbox_exporter", LIMIT, || async {
            scrape::get(port, "/-/healthy").await.map_err(|error| format!("{error:#}"))
        });
        if let Err(error) = up.await {
            exporter.check_running()?;
            return Err(error.into());
        }
        let module = module(work.kind);
        let url = |number| {
            let target = work.target.of_check(work.kind, number)?;
            anyhow::Ok(format!("http://127.0.0.1:{port}/probe?target={target}&module={module}"))
        };
        let urls = (0..work.checks).map(url).collect::<anyhow::Result<_>>()?;
        let (answers, (over, is_over)) = (Arc::new(Answers::default()), watch::channel(false));
        let every = Duration::from_secs(work.interval_s);
        let asking = tokio::spawn(beside(ask_all(urls, every, Arc::clone(&answers), is_over)));
        Ok(Self { _folder: folder, exporter, answers, over, asking })
    }

    pub(super) fn pid(&self) -> u32 {
        self.exporter.pid()
    }

    pub(super) fn counts(&self) -> Counts {
        let Answers { ok, failed } = &*self.answers;
        Counts { ok: ok.load(Ordering::Relaxed), failed: failed.load(Ordering::Relaxed) }
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        // It may have ended by itself.
        let _ = self.over.send(true);
        self.asking.await.context("whoever asks blackbox_exporter")??;
        self.exporter.check_running()?;
        Ok(self.exporter.stop().await?)
    }
}
