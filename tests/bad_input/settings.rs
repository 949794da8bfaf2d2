//! Settings of the services: a typo or an unusable file stops the start, and all that is wrong is said at once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bulkhead_testkit::TestDeployment;

use crate::names::check_names_core_refuses;
use crate::program::{run, search_path};

const BAD_SETTINGS: i32 = 64;

/// A service, and settings that it runs with.
struct Service {
    program: &'static str,
    folder: PathBuf,
    settings: String,
    /// Where a refusal was not as it should be.
    faults: Vec<String>,
}

impl Service {
    fn read(program: &'static str, file: &Path) -> anyhow::Result<Self> {
        let settings = fs::read_to_string(file).context("read settings")?;
        Ok(Self { program, folder: file.parent().context("folder of settings")?.to_owned(), settings, faults: vec![] })
    }

    /// Exit code and standard error of `check-config` with these settings.
    async fn check_config(&self, settings: &str) -> anyhow::Result<(Option<i32>, String)> {
        let file = self.folder.join("changed.toml");
        fs::write(&file, settings).context("write settings")?;
        let args = ["check-config", "--config", &file.display().to_string()];
        let output = run(self.program, &args, &search_path()?).await?;
        fs::remove_file(&file).context("remove settings")?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Settings with `changes` made are refused, and all of `expected` is said.
    async fn check_refused(&mut self, changes: &[(&str, &str)], expected: &[&str]) -> anyhow::Result<()> {
        let mut settings = self.settings.clone();
        for (from, to) in changes {
            anyhow::ensure!(settings.contains(from), "{from:?} is not in the settings of {}", self.program);
            settings = settings.replace(from, to);
        }
        let (code, said) = self.check_config(&settings).await?;
        let about = format!("{} with {changes:?} and {expected:?}", self.program);
        if code != Some(BAD_SETTINGS) {
            self.faults.push(format!("{about}: exit code {code:?}: {said}"));
        }
        let missing = expected.iter().filter(|part| !said.contains(**part));
        self.faults.extend(missing.map(|part| format!("{about}: {part:?} is missing in: {said}")));
        Ok(())
    }

    /// Refuses each damage to a file that the settings name, and names the file each time.
    async fn check_file(&mut self, file: &str, damages: &[&[u8]]) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        let whole = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let half = &whole[..whole.len() / 2];
        let shown = path.display().to_string();
        for damage in damages.iter().copied().chain([half, b"", b"\xff\xfe\x00 nothing of ours"]) {
            fs::write(&path, damage)?;
            self.check_refused(&[], &[&shown]).await?;
        }
        fs::remove_file(&path)?;
        self.check_refused(&[], &[&shown]).await?;
        // Nobody can read a folder as a file, root included.
        fs::create_dir(&path)?;
        self.check_refused(&[], &[&shown]).await?;
        fs::remove_dir(&path)?;
        bulkhead_accounts::files::write_secret(&path, &whole)?;
        Ok(())
    }

    async fn check_arguments(&self) -> anyhow::Result<()> {
        let path = search_path()?;
        for (args, expected) in [
            (["check-config", "--config", "no-such-file.toml"].as_slice(), "no-such-file.toml"),
            (&["--config", "no-such-file.toml"], "no-such-file.toml"),
            (&["--config"], "--config"),
            (&["chekc-config"], "chekc-config"),
        ] {
            let output = run(self.program, args, &path).await?;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(BAD_SETTINGS), "{args:?}: {said}");
            assert!(said.contains(expected), "{args:?}: {said}");
        }
        Ok(())
    }
}

async fn check_core(core: &mut Service) -> anyhow::Result<()> {
    let (code, said) = core.check_config(&core.settings).await?;
    assert_eq!(code, Some(0), "settings that core runs with: {said}");
    core.check_arguments().await?;
    core.check_refused(&[("log_filter", "log_fliter")], &["log_fliter"]).await?;
    core.check_refused(&[("inbox_prefix", "inbox_perfix")], &["inbox_perfix"]).await?;
    core.check_refused(&[("log_format = \"text\"", "log_format = 7")], &["log_format"]).await?;
    core.check_refused(&[("log_filter", "ingest.ahead = \"many\"\nlog_filter")], &["ahead"]).await?;
    core.check_refused(&[("log_filter", "[[[\nlog_filter")], &["changed.toml"]).await?;
    core.check_refused(&[("log_filter = \"info\"", "log_filter = \"=,=\"")], &["=,="]).await?;
    let many = [
        ("log_filter", "ingest.messages_most = 0\nlive.dark_after_s = 0\nlog_filter"),
        ("postgres-core.url", "none.url"),
        ("core-stream.crt", "none.crt"),
        ("core-rpc.key", "none.key"),
        ("tls://", "nats://"),
    ];
    let expected =
        ["ingest.messages_most", "live.dark_after_s", "none.url", "none.crt", "none.key", "nats://", "must be 1 to"];
    core.check_refused(&many, &expected).await?;
    core.check_file("core-rpc.crt", &[]).await?;
    core.check_file("core-stream.key", &[]).await
}

async fn check_poller(poller: &mut Service) -> anyhow::Result<()> {
    let (code, said) = poller.check_config(&poller.settings).await?;
    assert_eq!(code, Some(0), "settings that a poller runs with: {said}");
    poller.check_arguments().await?;
    poller.check_refused(&[("state_dir", "sate_dir")], &["sate_dir"]).await?;
    poller.check_refused(&[("interval_s", "intreval_s")], &["intreval_s"]).await?;
    poller.check_refused(&[("enabled = true", "enabled = \"yes\"")], &["enabled"]).await?;
    poller.check_refused(&[("log_filter = \"info\"", "log_filter = \"=,=\"")], &["=,="]).await?;
    let many = [
        ("tenant = \"acme-corp\"", "tenant = \"core\""),
        ("site = \"oslo\"", "site = \"os.lo\""),
        ("poller = \"p1\"", "poller = \"fwd\""),
        ("name = \"hub\"", "name = \"hub \\u0430\""),
        ("kind = \"icmp\"", "kind = \"telepathy\""),
        ("timeout_ms = 3000", "timeout_ms = 90000"),
        ("batch.nk", "none.nk"),
        ("poller.crt", "none.crt"),
        ("forwarder.key", "none.key"),
    ];
    let expected =
        ["\"core\"", "\"os.lo\"", "\"fwd\"", "hub ", "telepathy", "90000", "none.nk", "none.crt", "none.key"];
    poller.check_refused(&many, &expected).await?;
    poller.check_file("batch.nk", &[b"SAAAnot-a-user-seed"]).await?;
    poller.check_file("poller.crt", &[]).await?;
    poller.check_file("forwarder.key", &[]).await
}

#[tokio::test]
async fn bad_settings_and_names_of_others_are_refused_by_a_running_platform() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    check_names_core_refuses(&deployment).await?;
    let layout = &deployment.up.layout;
    let mut core = Service::read("bulkhead-core", &layout.core().join("core.toml"))?;
    check_core(&mut core).await?;
    let poller = layout.poller(&"acme-corp".parse()?, &"oslo".parse()?, &"p1".parse()?);
    let mut poller = Service::read("bulkhead-poller", &poller.join("poller.toml"))?;
    check_poller(&mut poller).await?;
    let faults = [core.faults, poller.faults].concat();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    deployment.wait_for_results(&witness).await?;
    deployment.stop().await
}
