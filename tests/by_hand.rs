//! A platform whose servers `bulkhead up` does not run: made, started, pushed to and used by the commands alone.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use bulkhead_testkit::deployment::program;
use bulkhead_testkit::{LIMIT, find_test_tools, free_ports};
use bulkhead_tests::operator::Operator;
use serde_json::Value;
use tokio::process::{Child, Command};

const SERVERS: usize = 3;

struct Place {
    folder: tempfile::TempDir,
    home: PathBuf,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self { home: folder.path().join("home"), folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn operator(&self) -> Operator<'_> {
        Operator { home: &self.home }
    }
}

fn start_server(config: &Path, log: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(find_test_tools()?.nats_server.path);
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    command.arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
    command.spawn().context("start nats-server")
}

fn urls(option: &'static str, ports: &[u16]) -> Vec<String> {
    ports.iter().flat_map(|port| [option.to_owned(), format!("tls://127.0.0.1:{port}")]).collect()
}

fn start_hub(place: &Place) -> anyhow::Result<Vec<Child>> {
    let server = |number: usize| {
        let folder = place.path("hub-files").join(format!("hub-{number}"));
        start_server(&folder.join("hub.conf"), &place.path(&format!("hub-{number}.log")))
    };
    (1..=SERVERS).map(server).collect()
}

fn start_gatekeepers(place: &Place) -> anyhow::Result<Vec<Child>> {
    let gatekeeper = |number: usize| {
        let folder = place.path("gatekeeper-files").join(format!("gatekeeper-{number}"));
        let log = std::fs::File::create(place.path(&format!("gatekeeper-{number}.log")))?;
        let mut command = Command::new(program("bulkhead-gatekeeper")?);
        command.arg("--config").arg(folder.join("gatekeeper.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        command.spawn().context("start a gatekeeper")
    };
    (1..=SERVERS).map(gatekeeper).collect()
}

/// Says again and again what has to succeed once the servers are up.
async fn until_done(place: &Place, line: &[&str]) -> anyhow::Result<Vec<Value>> {
    let done = bulkhead_runtime::eventually("a command that succeeds", LIMIT, || async {
        place.operator().expect(0, line).await.map_err(|error| format!("{error:#}"))
    });
    Ok(done.await?.0)
}

async fn operator_says(place: &Place, line: &[&str], rows: usize) -> anyhow::Result<()> {
    let (said, _) = place.operator().expect(0, line).await?;
    anyhow::ensure!(said.len() == rows, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_hub_of_three_is_made_pushed_to_and_used_by_commands_alone() -> anyhow::Result<()> {
    let place = Place::new()?;
    let [c1, c2, c3, l1, l2, l3, r1, r2, r3] = free_ports::<9>()?;
    let mut line = vec!["operator".to_owned(), "init".to_owned()];
    line.extend(["--trust-domain", "monitoring.example.org"].map(str::to_owned));
    line.extend(urls("--hub-url", &[c1, c2, c3]).into_iter().chain(urls("--leaf-url", &[l1, l2, l3])));
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let dry: Vec<&str> = line.iter().copied().chain(["--dry-run"]).collect();
    place.operator().expect(0, &dry).await?;
    anyhow::ensure!(!place.home.exists(), "a dry run has made a home");
    let (made, _) = place.operator().expect(0, &line).await?;
    anyhow::ensure!(made[0]["accounts"] == serde_json::json!(["auth", "core", "ops", "sent", "sys"]), "{made:?}");
    let (_, said) = place.operator().expect(4, &line).await?;
    anyhow::ensure!(said.contains("already"), "{said}");

    let to = place.path("hub-files").display().to_string();
    let (_, said) = place.operator().expect(4, &["server-config", "--to", &to]).await?;
    anyhow::ensure!(said.contains("--route-url"), "three servers on one host share a route address: {said}");
    let routes = urls("--route-url", &[r1, r2, r3]);
    let mut config = vec!["server-config", "--to", &to];
    config.extend(routes.iter().map(String::as_str));
    let (written, _) = place.operator().expect(0, &config).await?;
    anyhow::ensure!(written.len() == SERVERS, "{written:?}");
    let gates = place.path("gatekeeper-files").display().to_string();
    let config = ["gatekeeper-config", "--to", &gates];
    operator_says(&place, &[&config[..], &["--dry-run"]].concat(), SERVERS).await?;
    anyhow::ensure!(!Path::new(&gates).exists(), "a dry run has written files");
    operator_says(&place, &config, SERVERS).await?;
    let _hub = start_hub(&place)?;
    let _gatekeepers = start_gatekeepers(&place)?;

    until_done(&place, &["push"]).await?;
    until_done(&place, &["hub", "status"]).await?;
    place.operator().expect(0, &["diff"]).await?;
    let carol = place.path("carol").display().to_string();
    place.operator().expect(0, &["operator", "user", "add", "carol", "--to", &carol]).await?;
    place.operator().expect(0, &["tenant", "add", "acme-corp"]).await?;
    let (people, _) = place.operator().expect(0, &["operator", "user", "list"]).await?;
    anyhow::ensure!(people[0]["user"] == "carol" && people[0]["state"] == "active", "{people:?}");
    // Admitted by the hub; there is no core to ask.
    let profile = place.path("carol").join("profile.toml").display().to_string();
    let (_, said) = place.operator().expect(6, &["status", "--profile", &profile]).await?;
    anyhow::ensure!(said.contains("nobody") || said.contains("Nobody"), "{said}");
    place.operator().expect(0, &["operator", "user", "revoke", "carol"]).await?;
    let (_, said) = place.operator().expect(7, &["status", "--profile", &profile]).await?;
    anyhow::ensure!(said.contains("authorization violation"), "{said}");
    place.operator().expect(4, &["operator", "user", "revoke", "dave"]).await?;
    let (_, said) = place.operator().expect(1, &["up", "--until-first-results"]).await?;
    anyhow::ensure!(said.contains("does not run"), "up has taken the home over: {said}");
    // Whom the new intermediate may name is said by the platform's own trust domain.
    place.operator().expect(0, &["ca", "rotate", "platform"]).await?;
    place.operator().expect(0, &["diff"]).await.map(drop)
}

#[tokio::test]
async fn a_home_for_servers_elsewhere_is_not_taken_over_by_up() -> anyhow::Result<()> {
    let place = Place::new()?;
    let init =
        ["operator", "init", "--hub-url", "tls://hub.example.com:4222", "--leaf-url", "tls://hub.example.com:7422"];
    place.operator().expect(0, &init).await?;
    let before = std::fs::read(place.home.join("platform.toml"))?;
    let (_, said) = place.operator().expect(1, &["up", "--until-first-results"]).await?;
    anyhow::ensure!(said.contains("tls://hub.example.com:4222") && said.contains("--home"), "{said}");
    anyhow::ensure!(std::fs::read(place.home.join("platform.toml"))? == before, "the settings are others");
    Ok(())
}

#[tokio::test]
async fn bad_addresses_are_refused_with_the_rule_and_make_nothing() -> anyhow::Result<()> {
    let place = Place::new()?;
    let good = "tls://hub.example.com:4222";
    for (hub, leaf, rule) in [
        ("nats://hub.example.com:4222", good, "tls://host:port"),
        ("tls://hub.example.com", good, "tls://host:port"),
        (good, "tls://a\"b:1", "tls://host:port"),
        (good, "tls://hub..example.com:1", "tls://host:port"),
        (good, "tls://hub.example.com:0", "tls://host:port"),
    ] {
        let (_, said) = place.operator().expect(4, &["operator", "init", "--hub-url", hub, "--leaf-url", leaf]).await?;
        anyhow::ensure!(said.contains(rule), "{hub} {leaf}: {said}");
    }
    let two = ["operator", "init", "--hub-url", good, "--hub-url", good, "--leaf-url", good];
    let (_, said) = place.operator().expect(4, &two).await?;
    anyhow::ensure!(said.contains("write 1, or 3"), "{said}");
    anyhow::ensure!(!place.home.exists(), "something was made");
    Ok(())
}

#[tokio::test]
async fn shells_and_manuals_know_every_command() -> anyhow::Result<()> {
    let place = Place::new()?;
    let (printed, _) = place.operator().expect(0, &["completions", "bash"]).await?;
    let script = printed[0]["script"].as_str().context("script")?;
    anyhow::ensure!(script.contains("server-config") && script.contains("rotate-key"), "{script}");
    let file = place.path("bulkhead.bash");
    std::fs::write(&file, script)?;
    let asked = "source \"$0\"; COMP_WORDS=(bulkhead ten); COMP_CWORD=1; _bulkhead bulkhead ten bulkhead; echo \"${COMPREPLY[@]}\"";
    let answer = Command::new("bash").args(["-c", asked]).arg(&file).output().await?;
    anyhow::ensure!(String::from_utf8_lossy(&answer.stdout).trim() == "tenant", "{answer:?}");
    let folder = place.path("man").display().to_string();
    place.operator().expect(0, &["man", "--to", &folder]).await?;
    let page = std::fs::read_to_string(place.path("man").join("bulkhead-tenant-add.1"))?;
    anyhow::ensure!(page.contains("onboard") || page.contains("acme\\-corp"), "{page}");
    Ok(())
}
