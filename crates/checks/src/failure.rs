//! How a check ends when it does not end well.

use std::io::{Error, ErrorKind};
use std::time::Duration;

use bulkhead_bus::payload::{Outcome, Reason};

/// Why a check did not end `ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    pub(crate) reason: Reason,
    /// Where the target answered, though not as it should.
    pub(crate) latency: Option<Duration>,
}

impl Failure {
    /// The target did not answer as it should.
    pub(crate) fn of_target(reason: Reason) -> Self {
        Self { outcome: Outcome::Fail, reason, latency: None }
    }

    /// The poller could not measure.
    pub(crate) fn of_poller(reason: Reason) -> Self {
        Self { outcome: Outcome::Error, reason, latency: None }
    }

    pub(crate) fn after(self, latency: Duration) -> Self {
        Self { latency: Some(latency), ..self }
    }

    /// What an error of a socket says about the target, or about this machine.
    pub(crate) fn of_socket(error: &Error) -> Self {
        let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
        if is(&[ErrorKind::ConnectionRefused]) {
            Self::of_target(Reason::Refused)
        } else if is(&[ErrorKind::TimedOut]) {
            Self::of_target(Reason::Timeout)
        } else if is(&[ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable]) {
            Self::of_target(Reason::Unreachable)
        } else if is(&[
            ErrorKind::ConnectionReset,
            ErrorKind::ConnectionAborted,
            ErrorKind::BrokenPipe,
            ErrorKind::UnexpectedEof,
            ErrorKind::NotConnected,
        ]) {
            Self::of_target(Reason::Closed)
        } else if is(&[ErrorKind::PermissionDenied]) {
            Self::of_poller(Reason::NotPermitted)
        } else {
            // Out of ports, of descriptors, of memory: nothing that the target did.
            Self::of_poller(Reason::Internal)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_errors_are_told_apart() {
        for (kind, outcome, reason) in [
            (ErrorKind::ConnectionRefused, Outcome::Fail, Reason::Refused),
            (ErrorKind::TimedOut, Outcome::Fail, Reason::Timeout),
            (ErrorKind::HostUnreachable, Outcome::Fail, Reason::Unreachable),
            (ErrorKind::ConnectionReset, Outcome::Fail, Reason::Closed),
            (ErrorKind::PermissionDenied, Outcome::Error, Reason::NotPermitted),
            (ErrorKind::AddrNotAvailable, Outcome::Error, Reason::Internal),
            (ErrorKind::OutOfMemory, Outcome::Error, Reason::Internal),
        ] {
            let failure = Failure::of_socket(&Error::from(kind));
            assert_eq!((failure.outcome, failure.reason), (outcome, reason), "{kind:?}");
        }
    }
}
