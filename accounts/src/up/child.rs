//! Child processes that die with their parent: `setpriv --pdeathsig` where there is one, pid files for what is left.
//!
//! A pid file holds the pid and the process's start time, so that only what we started is ever ended.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_runtime::eventually;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::files::write_public;

const STOP_LIMIT: Duration = Duration::from_secs(10);
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// An unprivileged account of this machine, for programs that refuse root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// How a process is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskBy {
    Terminate,
    /// PostgreSQL's fast shutdown.
    Interrupt,
}

impl AskBy {
    fn signal(self) -> Signal {
        match self {
            Self::Terminate => Signal::TERM,
            Self::Interrupt => Signal::INT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub folder: PathBuf,
    pub log_file: PathBuf,
    pub pid_file: PathBuf,
    pub run_as: Option<RunAs>,
    pub ask_by: AskBy,
}

/// Why a process was not started; names it.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("open log {path} of {name}")]
    Log { name: String, path: String, source: std::io::Error },
    #[error("start {name} ({program})")]
    Start { name: String, program: String, source: std::io::Error },
    #[error("{name} has ended ({status}); the end of its log {log}:\n{tail}")]
    Ended { name: String, status: String, log: String, tail: String },
    #[error("stop {name}")]
    Stop { name: String, source: std::io::Error },
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    spec: ChildSpec,
    process: Process,
}

/// Where a process began, in clock ticks since boot: with the pid, the process's identity.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may hold spaces; field 22 counts from the pid.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn has_setpriv() -> bool {
    Command::new("setpriv").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn command(spec: &ChildSpec) -> Command {
    let mut command = if has_setpriv() {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", spec.ask_by.name()]);
        if let Some(RunAs { uid, gid }) = spec.run_as {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        }
        command.arg("--").arg(&spec.program);
        command
    } else {
        let mut command = Command::new(&spec.program);
        if let Some(RunAs { uid, gid }) = spec.run_as {
            command.uid(uid).gid(gid);
        }
        command
    };
    // Its own group: Ctrl-C is for the parent, which ends its children in order.
    command.args(&spec.args).current_dir(&spec.folder).stdin(Stdio::null()).process_group(0);
    command
}

/// Starts a process and writes its pid file.
fn spawn(spec: &ChildSpec) -> Result<Process, ChildError> {
    let log_error =
        |source| ChildError::Log { name: spec.name.clone(), path: spec.log_file.display().to_string(), source };
    let log = OpenOptions::new().create(true).append(true).open(&spec.log_file).map_err(log_error)?;
    let both: File = log.try_clone().map_err(log_error)?;
    let started = command(spec).stdout(log).stderr(both).spawn();
    let process = started.map_err(|source| ChildError::Start {
        name: spec.name.clone(),
        program: spec.program.display().to_string(),
        source,
    })?;
    let started = start_time(process.id()).unwrap_or(0);
    // Without the file a killed parent's child is found by nobody, but pdeathsig has ended it already.
    let _ = write_public(&spec.pid_file, format!("{} {started}\n", process.id()).as_bytes());
    Ok(process)
}

impl Child {
    /// Starts a process and writes its pid file.
    ///
    /// The kernel ties it to the *thread* that started it, so call this from one that lives as long as it should.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(spec: ChildSpec) -> Result<Self, ChildError> {
        let process = spawn(&spec)?;
        Ok(Self { spec, process })
    }

    /// Starts the same process again, after ending the one that may still run.
    ///
    /// # Errors
    /// When it cannot be ended or started.
    pub fn restart(&mut self) -> Result<(), ChildError> {
        self.kill()?;
        self.process = spawn(&self.spec)?;
        Ok(())
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    #[must_use]
    pub fn spec(&self) -> &ChildSpec {
        &self.spec
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// An error when the process has ended, with the end of its log.
    ///
    /// # Errors
    /// [`ChildError::Ended`].
    pub fn check_running(&mut self) -> Result<(), ChildError> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(&status.to_string())),
            Err(source) => Err(ChildError::Stop { name: self.spec.name.clone(), source }),
        }
    }

    fn ended(&self, status: &str) -> ChildError {
        ChildError::Ended {
            name: self.spec.name.clone(),
            status: status.to_owned(),
            log: self.spec.log_file.display().to_string(),
            tail: log_tail(&self.spec.log_file, 12),
        }
    }

    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        let Some(pid) = Pid::from_raw(i32::try_from(self.process.id()).unwrap_or(0)) else { return Ok(()) };
        Ok(kill_process(pid, signal)?)
    }

    /// Pauses the process as it is.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pause(&self) -> Result<(), ChildError> {
        self.signal(Signal::STOP).map_err(|source| ChildError::Stop { name: self.spec.name.clone(), source })
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resume(&self) -> Result<(), ChildError> {
        self.signal(Signal::CONT).map_err(|source| ChildError::Stop { name: self.spec.name.clone(), source })
    }

    /// Asks the process to end and waits; kills it when it does not.
    ///
    /// # Errors
    /// When it can be neither asked nor killed.
    pub async fn stop(&mut self) -> Result<(), ChildError> {
        let failed = |source| ChildError::Stop { name: self.spec.name.clone(), source };
        if self.process.try_wait().map_err(failed)?.is_none() {
            self.signal(self.spec.ask_by.signal()).map_err(failed)?;
            let process = &mut self.process;
            let ended = eventually("the end of a child", STOP_LIMIT, || {
                std::future::ready(match process.try_wait() {
                    Ok(Some(_)) => Ok(()),
                    Ok(None) => Err("it runs"),
                    Err(_) => Err("it cannot be waited for"),
                })
            });
            if ended.await.is_err() {
                self.kill()?;
            }
        }
        // A pid file of a process that is gone does no harm.
        let _ = fs::remove_file(&self.spec.pid_file);
        Ok(())
    }

    /// Ends the process at once, as a power cut would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<(), ChildError> {
        let failed = |source| ChildError::Stop { name: self.spec.name.clone(), source };
        if self.process.try_wait().map_err(failed)?.is_none() {
            self.process.kill().map_err(failed)?;
            self.process.wait().map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.spec.ask_by == AskBy::Interrupt && self.signal(Signal::INT).is_ok() {
            // PostgreSQL leaves shared memory behind when it is killed, and is down within milliseconds when asked.
            let asked = Instant::now();
            while asked.elapsed() < DROP_LIMIT && matches!(self.process.try_wait(), Ok(None)) {
                std::thread::yield_now();
            }
        }
        // Nothing can be done about an error here; pdeathsig and the pid file remain.
        let _ = self.kill();
        let _ = fs::remove_file(&self.spec.pid_file);
    }
}

/// The last `lines` lines of a log, for an error message.
#[must_use]
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("    {line}\n")).collect()
}

/// What a pid file holds: the process and where it began.
fn recorded(pid_file: &Path) -> Option<(u32, u64)> {
    let text = fs::read_to_string(pid_file).ok()?;
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// The process of a pid file, if it still runs. One that has ended and was not waited for does not.
#[must_use]
pub fn running_process(pid_file: &Path) -> Option<u32> {
    let (pid, started) = recorded(pid_file)?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let is_zombie = stat.rsplit_once(')')?.1.trim_start().starts_with('Z');
    (start_time(pid) == Some(started) && !is_zombie).then_some(pid)
}

/// Ends what an earlier `up` that was killed has left behind, by its pid files in `folder`.
///
/// # Errors
/// When a process cannot be ended.
pub async fn end_leftovers(folder: &Path) -> Result<Vec<u32>, ChildError> {
    let mut ended = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(ended) };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "pid"))
    {
        if let Some((pid, started)) = recorded(&path)
            && start_time(pid) == Some(started)
        {
            end_process(pid, started).await?;
            ended.push(pid);
        }
        let _ = fs::remove_file(&path);
    }
    Ok(ended)
}

async fn end_process(pid: u32, started: u64) -> Result<(), ChildError> {
    let Some(raw) = Pid::from_raw(i32::try_from(pid).unwrap_or(0)) else { return Ok(()) };
    let failed = |source: rustix::io::Errno| ChildError::Stop { name: format!("process {pid}"), source: source.into() };
    let is_gone = || test_kill_process(raw).is_err() || start_time(pid) != Some(started);
    kill_process(raw, Signal::TERM).map_err(failed)?;
    let gone = eventually("the end of a leftover", STOP_LIMIT, || {
        std::future::ready(if is_gone() { Ok(()) } else { Err("it runs") })
    });
    if gone.await.is_err() {
        kill_process(raw, Signal::KILL).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(folder: &Path, args: &[&str]) -> ChildSpec {
        ChildSpec {
            name: "sample".to_owned(),
            program: PathBuf::from("/bin/sh"),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            folder: folder.to_owned(),
            log_file: folder.join("sample.log"),
            pid_file: folder.join("sample.pid"),
            run_as: None,
            ask_by: AskBy::Terminate,
        }
    }

    #[tokio::test]
    async fn an_early_end_shows_the_end_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Child::start(spec(folder.path(), &["-c", "echo port taken; exit 3"])).unwrap();
        let ended = eventually("the end", Duration::from_secs(5), || {
            std::future::ready(match child.check_running() {
                Ok(()) => Err("it runs".to_owned()),
                Err(error) => Ok(error.to_string()),
            })
        });
        let error = ended.await.unwrap();
        assert!(error.contains("port taken") && error.contains("exit status: 3"), "{error}");
    }

    #[tokio::test]
    async fn leftovers_are_ended_by_identity_and_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut ours = Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let mut other = Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let started = start_time(ours.id()).unwrap();
        fs::write(folder.path().join("ours.pid"), format!("{} {started}\n", ours.id())).unwrap();
        // The pid was given to somebody else since.
        fs::write(folder.path().join("other.pid"), format!("{} {}\n", other.id(), 1)).unwrap();
        assert_eq!(running_process(&folder.path().join("ours.pid")), Some(ours.id()));
        assert_eq!(running_process(&folder.path().join("other.pid")), None);
        assert_eq!(running_process(&folder.path().join("none.pid")), None);
        // A zombie stays visible until it is waited for, so wait beside it.
        let pid = ours.id();
        let waiter = std::thread::spawn(move || ours.wait());
        assert_eq!(end_leftovers(folder.path()).await.unwrap(), [pid]);
        waiter.join().unwrap().unwrap();
        assert!(other.try_wait().unwrap().is_none(), "a process that is not ours was ended");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
