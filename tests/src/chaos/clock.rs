//! A wall clock that can be set, for one process: a small library that is loaded before libc. The product has no hook
//! for this, so what is tested is the program as it ships.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use bulkhead_accounts::up::{Child, ChildSpec};

const SOURCE: &str = include_str!("clock.c");

/// The library, ready to be loaded.
#[derive(Debug, Clone)]
pub(super) struct ClockLibrary(PathBuf);

/// The clock of one process.
#[derive(Debug)]
pub(super) struct Clock {
    step_file: PathBuf,
}

impl ClockLibrary {
    /// Compiles it into `folder`; `None` when there is no C compiler.
    pub(super) fn build(folder: &Path) -> anyhow::Result<Option<Self>> {
        let source = folder.join("clock.c");
        std::fs::write(&source, SOURCE).context("write the clock's source")?;
        let library = folder.join("clock.so");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let Ok(compiled) = compile.output() else { return Ok(None) };
        let said = String::from_utf8_lossy(&compiled.stderr).into_owned();
        anyhow::ensure!(compiled.status.success(), "compile the clock: {said}");
        Ok(Some(Self(library)))
    }

    /// Starts the same process as `spec`, with a clock that can be set.
    pub(super) fn start(&self, spec: &ChildSpec, step_file: PathBuf) -> anyhow::Result<(Child, Clock)> {
        let clock = Clock { step_file };
        clock.set(0)?;
        let mut args = vec![
            format!("LD_PRELOAD={}", self.0.display()),
            format!("CLOCK_STEP_FILE={}", clock.step_file.display()),
            spec.program.display().to_string(),
        ];
        args.extend(spec.args.iter().cloned());
        let spec = ChildSpec { program: "/usr/bin/env".into(), args, ..spec.clone() };
        let child = Child::start(spec).context("start a process with a clock of its own")?;
        Ok((child, clock))
    }
}

impl Clock {
    /// From now on the process's clock is off by `step_ms`.
    pub(super) fn set(&self, step_ms: i64) -> anyhow::Result<()> {
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&self.step_file);
        let file = options.context("open the clock's file")?;
        // In place: the process has the file mapped.
        file.write_all_at(&step_ms.to_ne_bytes(), 0).context("set the clock")
    }
}
