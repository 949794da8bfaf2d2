//! How often a process that may be started again has ended too soon.

use std::time::{Duration, Instant};

use super::child::{Child, ChildError};

/// What lives shorter than this has not come up.
pub(super) const LIFE_LEAST: Duration = Duration::from_secs(10);
/// So often in a row what did not come up is started again.
pub(super) const SHORT_LIVES_MOST: u32 = 3;

/// The lives of one process. Others go on while it is away.
#[derive(Debug)]
pub(super) struct Lives {
    pub(super) started: Instant,
    short: u32,
}

impl Lives {
    pub(super) fn begin() -> Self {
        Self { started: Instant::now(), short: 0 }
    }

    pub(super) fn begin_again(&mut self) {
        self.started = Instant::now();
    }

    /// Why it has ended, when it has and may be started again.
    ///
    /// # Errors
    /// The end of its log, when it has not come up several times in a row.
    pub(super) fn end_to_mend(&mut self, child: &mut Child) -> Result<Option<ChildError>, ChildError> {
        let Err(error) = child.check_running() else { return Ok(None) };
        self.short = if self.started.elapsed() < LIFE_LEAST { self.short + 1 } else { 0 };
        if self.short > SHORT_LIVES_MOST { Err(error) } else { Ok(Some(error)) }
    }
}
