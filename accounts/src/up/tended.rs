//! Processes that nothing waits for: while one is away all else goes on, and it is started again.

use std::time::{Duration, Instant};

use super::child::{Child, ChildError, ChildSpec};
use super::deployment::DeploymentError;
use super::lives::Lives;

/// How long one that does not come up is left alone.
const HOLD_OFF: Duration = Duration::from_secs(60);

/// The running process.
#[derive(Debug)]
pub struct Tended {
    pub child: Child,
    /// What does not happen while it is away, for people.
    loss: &'static str,
    lives: Lives,
    /// When it was given up for a while.
    given_up: Option<Instant>,
}

impl Tended {
    pub(super) fn start(spec: ChildSpec, loss: &'static str) -> Result<Self, DeploymentError> {
        let child = Child::start(spec).map_err(DeploymentError::Child)?;
        Ok(Self { child, loss, lives: Lives::begin(), given_up: None })
    }

    /// Starts it again when it has ended, and ever again after a while when it does not come up; says why.
    ///
    /// # Errors
    /// When it cannot be started at all.
    pub(super) fn mend(&mut self) -> Result<Option<String>, ChildError> {
        if self.given_up.is_some_and(|at| at.elapsed() < HOLD_OFF) {
            return Ok(None);
        }
        let (note, is_hopeless) = match self.lives.end_to_mend(&mut self.child) {
            Ok(None) => return Ok(None),
            Ok(Some(end)) => (Some(format!("starting it again while all else goes on: {end}")), false),
            Err(end) if self.given_up.is_none() => (Some(format!("{} until it comes up: {end}", self.loss)), true),
            Err(_) => (None, false),
        };
        self.given_up = (is_hopeless || note.is_none()).then(Instant::now);
        if !is_hopeless {
            self.child.restart()?;
            self.lives.begin_again();
        }
        Ok(note)
    }
}
