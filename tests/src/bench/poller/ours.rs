//! Our poller at a leaf of its own: a real nats-server over TLS, with the stream that batches are stored in and the product's
//! way of syncing it. No hub is linked, and the forwarder, which one poller of a site has, is off.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use bulkhead_accounts::up::child::AskBy;
use bulkhead_accounts::up::{Child, ChildSpec};
use bulkhead_bus::StreamName;
use bulkhead_runtime::{Bus, BusSettings, TlsFiles, eventually};
use bulkhead_testkit::deployment::program;
use bulkhead_testkit::{
    Endpoint, Exposition, Handshake, Identity, LIMIT, RawClient, find_test_tools, free_ports, scrape,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::{Counts, Work};

/// `batch.results_most` of the poller's own defaults.
const RESULTS_PER_BATCH: f64 = 100.0;

pub(super) struct Ours {
    folder: TempDir,
    leaf_port: u16,
    health_port: u16,
    leaf: Child,
    poller: Child,
}

fn write_keys(folder: &Path) -> anyhow::Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
    for (name, text) in [("ca.pem", authority.pem()), ("c.pem", certificate.pem()), ("c.key", key.serialize_pem())] {
        std::fs::write(folder.join(name), text)?;
    }
    let seed = folder.join("batch.key");
    std::fs::write(&seed, nkeys::KeyPair::new_user().seed()?)?;
    Ok(std::fs::set_permissions(&seed, std::os::unix::fs::PermissionsExt::from_mode(0o600))?)
}

fn connection(folder: &Path, port: u16, inbox_prefix: &str) -> BusSettings {
    let tls =
        TlsFiles { ca_file: folder.join("ca.pem"), cert_file: folder.join("c.pem"), key_file: folder.join("c.key") };
    let urls = vec![format!("tls://127.0.0.1:{port}")];
    BusSettings { urls, tls, creds_file: None, inbox_prefix: inbox_prefix.to_owned() }
}

pub(super) fn start_child(folder: &Path, name: &str, program: &Path, args: &[&str]) -> anyhow::Result<Child> {
    let spec = ChildSpec {
        name: name.to_owned(),
        program: program.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        folder: folder.to_owned(),
        log_file: folder.join(format!("{name}.log")),
        pid_file: folder.join(format!("{name}.pid")),
        run_as: None,
        ask_by: AskBy::Terminate,
    };
    Ok(Child::start(spec)?)
}

async fn start_leaf(folder: &Path, port: u16) -> anyhow::Result<Child> {
    let at = folder.display();
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\nmax_payload: 1MB\n\
         jetstream {{ store_dir: \"{at}/js\", max_mem: 16MB, max_file: 1152MB, sync_interval: always }}\n\
         tls {{ cert_file: \"{at}/c.pem\", key_file: \"{at}/c.key\", ca_file: \"{at}/ca.pem\", verify: true, timeout: 3 }}\n"
    );
    let file = folder.join("leaf.conf");
    std::fs::write(&file, config).context("write the leaf's configuration")?;
    let server = find_test_tools()?.nats_server.path;
    let leaf = start_child(folder, "leaf", &server, &["-c", &file.display().to_string()])?;
    let settings = connection(folder, port, "_INBOX_bench");
    let bus = eventually("the leaf", LIMIT, || async { Bus::connect(&settings, "bench").await }).await?;
    bus.ensure_stream(&StreamName::ResultsEdge.spec(), 1).await.context("make the leaf's stream")?;
    Ok(leaf)
}

fn write_settings(folder: &Path, (leaf_port, health_port): (u16, u16), work: &Work<'_>) -> anyhow::Result<()> {
    let at = folder.display();
    let mut text = format!(
        "log_filter = \"warn\"\nhealth_listen = \"127.0.0.1:{health_port}\"\n\
         state_dir = \"{at}/state\"\nbatch_key_file = \"{at}/batch.key\"\n\
         [identity]\ntenant = \"acme-corp\"\nsite = \"oslo\"\npoller = \"p1\"\n\
         [forwarder]\nenabled = false\n\
         [leaf]\nurls = [\"tls://127.0.0.1:{leaf_port}\"]\ninbox_prefix = \"_INBOX_oslo.p1\"\n\
         tls = {{ ca_file = \"{at}/ca.pem\", cert_file = \"{at}/c.pem\", key_file = \"{at}/c.key\" }}\n"
    );
    let (kind, interval_s, timeout_ms) = (work.kind.as_str(), work.interval_s, work.timeout_ms);
    for number in work.first..work.first + work.checks {
        let target = work.target.of_check(work.kind, number)?;
        write!(
            text,
            "[[checks]]\nname = \"check-{number}\"\nkind = \"{kind}\"\ntarget = \"{target}\"\n\
             interval_s = {interval_s}\ntimeout_ms = {timeout_ms}\n"
        )?;
    }
    std::fs::write(folder.join("poller.toml"), text).context("write the poller's settings")
}

impl Ours {
    pub(super) async fn start(work: &Work<'_>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let [leaf_port, health_port] = free_ports()?;
        write_keys(folder.path()).context("make keys")?;
        let leaf = start_leaf(folder.path(), leaf_port).await?;
        write_settings(folder.path(), (leaf_port, health_port), work)?;
        let settings = folder.path().join("poller.toml").display().to_string();
        let poller = start_child(folder.path(), "poller", &program("bulkhead-poller")?, &["--config", &settings])?;
        let mut started = Self { folder, leaf_port, health_port, leaf, poller };
        let ready = eventually("the poller", LIMIT, || async {
            match scrape::get(health_port, "/readyz").await {
                Ok((200, _)) => Ok(()),
                Ok((status, page)) => Err(format!("{status}: {page}")),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        if let Err(error) = ready.await {
            started.poller.check_running()?;
            return Err(error.into());
        }
        Ok(started)
    }

    pub(super) fn pid(&self) -> u32 {
        self.poller.pid()
    }

    pub(super) fn leaf_pid(&self) -> u32 {
        self.leaf.pid()
    }

    /// Results count once the leaf has them; what was dropped on the way counts as failed.
    pub(super) async fn counts(&self) -> anyhow::Result<Counts> {
        let (_, page) = scrape::get(self.health_port, "/metrics").await?;
        let page = Exposition::parse(&page)?;
        let value = |name: &str| page.value(name, &[]).with_context(|| format!("{name} is not shown"));
        let ok = page.value("poller_results_total", &[("outcome", "ok")]).unwrap_or(0.0);
        let samples = page.families.iter().flat_map(|family| &family.samples);
        let all: f64 = samples.filter(|sample| sample.name == "poller_results_total").map(|sample| sample.value).sum();
        let mut failed = all - ok;
        for lost in ["poller_spool_dropped_total", "poller_spool_thinned_total", "poller_batches_refused_total"] {
            failed += value(lost)?;
        }
        let handed_on = ok - value("poller_spool_results")?;
        let stored_most = value("poller_batches_stored_total")? * RESULTS_PER_BATCH;
        Ok(Counts { ok: handed_on.min(stored_most) as u64, failed: failed as u64 })
    }

    /// Hears what the poller writes to the leaf.
    pub(super) async fn listen(&self) -> anyhow::Result<RawClient> {
        let at = |name: &str| self.folder.path().join(name);
        let endpoint = Endpoint {
            addr: ([127, 0, 0, 1], self.leaf_port).into(),
            server_name: "127.0.0.1".to_owned(),
            handshake: Handshake::AfterInfo,
        };
        let identity = Identity::trusting(at("ca.pem")).with_certificate(at("c.pem"), at("c.key"));
        let client = RawClient::connect(&endpoint, &identity).await?;
        client.subscribe("results.>").await?;
        client.flush().await?;
        Ok(client)
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.poller.check_running()?;
        self.poller.stop().await?;
        Ok(self.leaf.stop().await?)
    }
}
