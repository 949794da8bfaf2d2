//! A machine at a site: one folder, two programs on its path, and nothing else of ours. It is started as the README in the
//! folder says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use bulkhead_accounts::bundle::SiteBundle;
use bulkhead_testkit::deployment::program;
use bulkhead_testkit::{find_test_tools, free_ports};
use tempfile::TempDir;
use tokio::process::Child;

/// The first of `count` neighbouring ports that are free now.
pub fn neighbouring_ports(count: u16) -> anyhow::Result<u16> {
    let mut row: Vec<u16> = Vec::new();
    for _ in 0..1_000 {
        let [port] = free_ports()?;
        if row.last().is_some_and(|last| last + 1 != port) {
            row.clear();
        }
        row.push(port);
        if row.len() == usize::from(count) {
            return Ok(row[0]);
        }
    }
    anyhow::bail!("no {count} neighbouring ports are free")
}

/// More than any test starts on one machine.
const PROCESSES_MOST: usize = 10;

/// A machine at a site.
#[derive(Debug)]
pub struct Machine {
    home: TempDir,
    programs: TempDir,
    pub logs: TempDir,
    /// The site's folder.
    pub bundle: PathBuf,
}

/// The processes of a site; dropping them kills them.
#[derive(Debug)]
pub struct Running(Vec<Child>);

impl Machine {
    /// With a bundle unpacked in an empty folder.
    ///
    /// # Errors
    /// When it cannot be unpacked.
    pub fn unpack(bundle: &SiteBundle) -> anyhow::Result<Self> {
        let machine = Self::new(bundle.files.name())?;
        machine.unpack_over(bundle)?;
        Ok(machine)
    }

    /// With nothing in it; `bundle` is what the site's folder is called.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn new(bundle: &str) -> anyhow::Result<Self> {
        let (home, programs, logs) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
        let nats_server = find_test_tools()?.nats_server.path;
        for (name, path) in [("nats-server", &nats_server), ("bulkhead-poller", &program("bulkhead-poller")?)] {
            std::os::unix::fs::symlink(path, programs.path().join(name))?;
        }
        Ok(Self { bundle: home.path().join(bundle), home, programs, logs })
    }

    /// # Errors
    /// When it cannot be unpacked.
    pub fn unpack_over(&self, bundle: &SiteBundle) -> anyhow::Result<()> {
        let archive = self.home.path().join("site.tar.gz");
        bundle.files.write_archive(&archive)?;
        self.unpack_archive(&archive)?;
        std::fs::remove_file(archive).context("remove the archive")
    }

    /// # Errors
    /// When it cannot be unpacked.
    pub fn unpack_archive(&self, archive: &Path) -> anyhow::Result<()> {
        let unpacked = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(self.home.path()).status()?;
        ensure!(unpacked.success(), "tar does not unpack the archive");
        Ok(())
    }

    /// The commands that the README gives below a heading.
    fn commands(&self, heading: &str) -> anyhow::Result<Vec<Vec<String>>> {
        let readme = std::fs::read_to_string(self.bundle.join("README.md"))?;
        let section = readme.split("\n## ").find(|section| section.starts_with(heading)).context("heading")?;
        let block = section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).context("commands")?;
        Ok(block.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
    }

    /// A program of the machine's path, or any other, in the site's folder.
    ///
    /// # Errors
    /// When there is no word.
    pub fn command(&self, words: &[String]) -> anyhow::Result<Command> {
        let (name, arguments) = words.split_first().context("an empty command")?;
        let own = self.programs.path().join(name);
        let mut command = Command::new(if own.exists() { own } else { name.into() });
        command.args(arguments).current_dir(&self.bundle);
        Ok(command)
    }

    /// Whether every file is as it was made, as the README says how to ask.
    ///
    /// # Errors
    /// When the README does not say.
    pub fn check_sums(&self) -> anyhow::Result<Output> {
        let commands = self.commands("Check that it is whole")?;
        self.command(commands.first().context("no command")?)?.output().context("check sums")
    }

    /// Starts everything as the README says.
    ///
    /// # Errors
    /// When it does not say, or something cannot be started.
    pub fn start(&self) -> anyhow::Result<Running> {
        let count = self.commands("Start by hand")?.len();
        Ok(Running((0..count).map(|number| self.start_one(number)).collect::<Result<_, _>>()?))
    }

    fn start_one(&self, number: usize) -> anyhow::Result<Child> {
        let commands = self.commands("Start by hand")?;
        let log = File::options().create(true).append(true).open(self.log(number))?;
        let mut command = self.command(commands.get(number).context("a command")?)?;
        command.env_clear().stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(tokio::process::Command::from(command).kill_on_drop(true).spawn()?)
    }

    /// The log of a process, by its place in the README.
    #[must_use]
    pub fn log(&self, number: usize) -> PathBuf {
        self.logs.path().join(number.to_string())
    }

    /// All logs, for the message of a failure.
    #[must_use]
    pub fn logs(&self) -> String {
        let logs = (0..PROCESSES_MOST).filter_map(|number| std::fs::read_to_string(self.log(number)).ok());
        logs.collect::<Vec<_>>().join("\n---\n")
    }
}

impl Running {
    /// Kills one process, by its place in the README, and starts it again; the others go on.
    ///
    /// # Errors
    /// When there is none, or it cannot be killed or started.
    pub async fn restart(&mut self, machine: &Machine, number: usize) -> anyhow::Result<()> {
        let child = self.0.get_mut(number).context("a process of that number")?;
        child.kill().await.context("kill a process of the site")?;
        *child = machine.start_one(number)?;
        Ok(())
    }

    /// A process's id, by its place in the README.
    ///
    /// # Errors
    /// When there is none, or it has ended.
    pub fn id(&self, number: usize) -> anyhow::Result<u32> {
        self.0.get(number).and_then(Child::id).context("a process of that number")
    }

    /// # Errors
    /// When one cannot be killed.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        for child in &mut self.0 {
            child.kill().await.context("kill a process of the site")?;
        }
        Ok(())
    }
}
