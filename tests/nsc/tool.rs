//! The real nsc, in folders of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// nsc with its settings and its data.
pub(crate) struct Nsc {
    program: PathBuf,
    variables: Vec<(&'static str, PathBuf)>,
    flags: Vec<String>,
    data: PathBuf,
}

impl Nsc {
    /// One that starts with nothing.
    pub(crate) fn new(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Self::of_copy(program, folder)
    }

    /// One that is told of a copy as `bulkhead nsc export` says.
    pub(crate) fn of_copy(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let (config, data) = (folder.join("config"), folder.join("data"));
        let variables = vec![("HOME", folder.to_owned()), ("XDG_CONFIG_HOME", config), ("XDG_DATA_HOME", data.clone())];
        let data = data.join("nats").join("nsc");
        Ok(Self { program: program.to_owned(), variables, flags: vec![], data })
    }

    /// One that works in our own store.
    pub(crate) fn of_store(program: &Path, store: &Path, config: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(config)?;
        let flag = |name: &str, path: PathBuf| [name.to_owned(), path.display().to_string()];
        let flags = [
            flag("--config-dir", config.to_owned()),
            flag("--data-dir", store.join("stores")),
            flag("--keystore-dir", store.join("keys")),
        ];
        let variables = vec![("HOME", config.to_owned())];
        let (program, data) = (program.to_owned(), store.to_owned());
        Ok(Self { program, variables, flags: flags.concat(), data })
    }

    /// Where `stores` and `keys` are.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Runs it; what it said on either output.
    pub(crate) fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(args).args(&self.flags).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env("NSC_NO_GIT_IGNORE", "true").env_remove("NATS_CA");
        let output = command.current_dir(self.data.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")));
        let output = output.output().context("run nsc")?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        ensure!(output.status.success(), "nsc {args:?}: {said}");
        Ok(said)
    }

    /// nsc has nothing to say against any operator, account or user.
    pub(crate) fn validate_clean(&self) -> anyhow::Result<()> {
        let said = self.run(&["validate", "--all-accounts"])?;
        let reports = said.matches("+\n|").count();
        let clean = said.matches("No issues found").count();
        ensure!(clean > 1 && reports > 0, "{said}");
        ensure!(!said.contains("Code") && !said.contains("Warn") && !said.contains("Err"), "{said}");
        Ok(())
    }

    /// The server lets a user in whose key nsc holds.
    pub(crate) fn can_connect(&self, account: &str, user: &str, url: &str) -> anyhow::Result<()> {
        let said = self.run(&["tool", "rtt", "--account", account, "--user", user, "--nats", url])?;
        ensure!(said.contains("round trip"), "{said}");
        Ok(())
    }
}
