//! The processes that `up` has started, by their pid files, and the programs that they run. Asking a program for its
//! version has a limit, and nothing is asked of a process itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::home::Home;
use super::reach::limited;
use crate::up::child::running_process;

/// A process that should run.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) pid: Option<u32>,
}

impl Process {
    /// The program that runs, even when its file was replaced since.
    pub(super) fn program(&self) -> Option<PathBuf> {
        self.pid.map(|pid| PathBuf::from(format!("/proc/{pid}/exe")))
    }

    /// Whether the program's file is no longer what runs.
    pub(super) fn is_replaced(&self) -> bool {
        let program = self.program().and_then(|program| std::fs::read_link(program).ok());
        program.is_some_and(|path| path.to_string_lossy().ends_with(" (deleted)"))
    }
}

/// Every process that has a pid file, and those that should have one.
pub(super) fn processes(home: &Home) -> Vec<Process> {
    let mut names: Vec<String> = ["postgres", "core"].map(str::to_owned).into();
    for site in &home.sites {
        names.push(format!("leaf-{}-{}", site.tenant, site.site));
        names.extend(site.pollers.iter().map(|poller| format!("poller-{}-{}-{poller}", site.tenant, site.site)));
    }
    let recorded = std::fs::read_dir(home.layout.run()).into_iter().flatten().flatten();
    let recorded = recorded.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "pid"));
    names.extend(recorded.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())));
    if !names.iter().any(|name| name.starts_with("hub")) {
        names.push("hub".to_owned());
    }
    names.sort();
    names.dedup();
    let process = |name: String| Process { pid: running_process(&home.layout.pid(&name)), name };
    names.into_iter().map(process).collect()
}

/// What a program prints when it is asked something that it answers at once.
pub(super) async fn output_of(program: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = limited(command.output()).await?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(format!("{}: {}", output.status, text.trim())) }
}
