//! The enrolment desk of a deployment. Nothing else waits for it: while it is away nobody enrols, and all else goes on.

use std::time::{Duration, Instant};

use super::child::{Child, ChildError, ChildSpec};
use super::deployment::DeploymentError;
use super::lives::Lives;
use super::start::{Starter, child_spec};

/// The name of its port.
pub(crate) const DESK_PORT: &str = "enrolment";
const PROCESS: &str = "enrolment-desk";

/// How long one that does not come up is left alone.
const HOLD_OFF: Duration = Duration::from_secs(60);

/// The running process.
#[derive(Debug)]
pub struct EnrolmentDesk {
    pub child: Child,
    lives: Lives,
    /// When it was given up for a while.
    given_up: Option<Instant>,
}

impl Starter<'_> {
    pub(super) fn start_desk(&mut self) -> Result<EnrolmentDesk, DeploymentError> {
        let port = self.ports.choose(DESK_PORT).map_err(DeploymentError::Port)?;
        let home = self.layout.home().display().to_string();
        let args = ["--home", &home, PROCESS, "--listen", &format!("127.0.0.1:{port}")].map(str::to_owned).into();
        let spec = ChildSpec { args, ..child_spec(self.layout, PROCESS, &self.options.programs.bulkhead) };
        Ok(EnrolmentDesk {
            child: Child::start(spec).map_err(DeploymentError::Child)?,
            lives: Lives::begin(),
            given_up: None,
        })
    }
}

impl EnrolmentDesk {
    /// Starts it again when it has ended, and ever again after a while when it does not come up; says why.
    ///
    /// # Errors
    /// When it cannot be started at all.
    pub(super) fn mend(&mut self) -> Result<Option<String>, ChildError> {
        if self.given_up.is_some_and(|at| at.elapsed() < HOLD_OFF) {
            return Ok(None);
        }
        let note = match self.lives.end_to_mend(&mut self.child) {
            Ok(None) => return Ok(None),
            Ok(Some(end)) => Some(format!("starting it again while all else goes on: {end}")),
            Err(end) if self.given_up.is_none() => Some(format!("nobody can enrol until it comes up: {end}")),
            Err(_) => None,
        };
        let is_hopeless = note.as_ref().is_none_or(|note| note.starts_with("nobody"));
        self.given_up = is_hopeless.then(Instant::now);
        if !is_hopeless || note.is_none() {
            self.child.restart()?;
            self.lives.begin_again();
        }
        Ok(note)
    }
}
