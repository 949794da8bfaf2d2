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
    /// By a signal, or by a debugger: it is there and does nothing.
    pub(super) is_stopped: bool,
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
    let process = |name: String| {
        let pid = running_process(&home.layout.pid(&name));
        Process { is_stopped: pid.is_some_and(is_stopped), pid, name }
    };
    names.into_iter().map(process).collect()
}

/// States `T` and `t` of proc(5).
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't']))
}

/// What a program prints when it is asked something that it answers at once.
pub(super) async fn output_of(program: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = limited(command.output()).await?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(format!("{}: {}", output.status, text.trim())) }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn a_process_is_known_by_its_pid_file_and_a_replaced_program_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        std::fs::create_dir_all(home.layout.run()).unwrap();
        let names = |home: &Home| processes(home).into_iter().map(|process| process.name).collect::<Vec<_>>();
        assert_eq!(names(&home), ["core", "hub", "postgres"]);
        let program = folder.path().join("program");
        // By a process of its own: a file that we had open for writing may still be so in a child of another test, and would
        // not start.
        assert!(std::process::Command::new("cp").arg("/bin/sleep").arg(&program).status().unwrap().success());
        let mut child = std::process::Command::new(&program).arg("600").spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
        std::fs::write(home.layout.pid("hub-2"), format!("{} {started}\n", child.id())).unwrap();
        assert_eq!(names(&home), ["core", "hub-2", "postgres"]);
        let own = |home: &Home| processes(home).into_iter().find(|process| process.name == "hub-2").unwrap();
        assert_eq!(own(&home).pid, Some(child.id()));
        assert!(!own(&home).is_replaced() && !own(&home).is_stopped);
        std::fs::remove_file(&program).unwrap();
        assert!(own(&home).is_replaced());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(own(&home).pid, None);
    }

    #[tokio::test]
    async fn a_program_that_does_not_answer_is_an_error_and_no_wait() {
        assert_eq!(output_of(Path::new("/bin/echo"), &["1"]).await.as_deref(), Ok("1\n"));
        assert!(output_of(Path::new("/nonexistent"), &[]).await.is_err());
        assert!(output_of(Path::new("/bin/false"), &[]).await.is_err());
        tokio::time::pause();
        let error = output_of(Path::new("/bin/sleep"), &["600"]).await.unwrap_err();
        assert!(error.contains("no answer within"), "{error}");
    }
}
