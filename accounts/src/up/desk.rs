//! The enrolment desk of a deployment. Nothing else waits for it: while it is away nobody enrols, and all else goes on.

use super::child::ChildSpec;
use super::deployment::DeploymentError;
use super::start::{Starter, child_spec};
use super::tended::Tended;

/// The name of its port.
pub(crate) const DESK_PORT: &str = "enrolment";
const PROCESS: &str = "enrolment-desk";

impl Starter<'_> {
    pub(super) fn start_desk(&mut self) -> Result<Tended, DeploymentError> {
        let port = self.ports.choose(DESK_PORT).map_err(DeploymentError::Port)?;
        let home = self.layout.home().display().to_string();
        let args = ["--home", &home, PROCESS, "--listen", &format!("127.0.0.1:{port}")].map(str::to_owned).into();
        let spec = ChildSpec { args, ..child_spec(self.layout, PROCESS, &self.options.programs.bulkhead) };
        Tended::start(spec, "nobody can enrol")
    }
}
