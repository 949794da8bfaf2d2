//! The enrolment desk of a deployment. Nothing else waits for it: while it is away nobody enrols, and all else goes on.

use super::child::{Child, ChildError, ChildSpec};
use super::deployment::DeploymentError;
use super::lives::Lives;
use super::start::{Starter, child_spec};

/// The name of its port.
pub(super) const DESK_PORT: &str = "enrolment";
const PROCESS: &str = "enrolment-desk";

/// The running process.
#[derive(Debug)]
pub struct EnrolmentDesk {
    pub child: Child,
    lives: Lives,
}

impl Starter<'_> {
    pub(super) fn start_desk(&mut self) -> Result<EnrolmentDesk, DeploymentError> {
        let port = self.ports.choose(DESK_PORT).map_err(DeploymentError::Port)?;
        let home = self.layout.home().display().to_string();
        let args = ["--home", &home, PROCESS, "--listen", &format!("127.0.0.1:{port}")].map(str::to_owned).into();
        let spec = ChildSpec { args, ..child_spec(self.layout, PROCESS, &self.options.programs.bulkhead) };
        Ok(EnrolmentDesk { child: Child::start(spec).map_err(DeploymentError::Child)?, lives: Lives::begin() })
    }
}

impl EnrolmentDesk {
    /// Starts it again when it has ended; says why it had.
    ///
    /// # Errors
    /// The end of its log, when it has not come up several times in a row.
    pub(super) fn mend(&mut self) -> Result<Option<ChildError>, ChildError> {
        let ended = self.lives.end_to_mend(&mut self.child)?;
        if ended.is_some() {
            self.child.restart()?;
            self.lives.begin_again();
        }
        Ok(ended)
    }
}
