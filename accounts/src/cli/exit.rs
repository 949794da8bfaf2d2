//! What a command ends with: a message on standard error and a documented exit code.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use bulkhead_bus::payload::ErrorCode;
use bulkhead_runtime::{ConnectError, RequestError};

use crate::certificates::CertificateError;
use crate::client::ClientError;
use crate::reason::reason;
use crate::up::DeploymentError;

pub(super) const DONE: u8 = 0;
pub(super) const FAILED: u8 = 1;
/// The doctor found something that will hurt, or a hub server is not whole.
pub(super) const WARNINGS: u8 = 2;
/// What should be and what is differ.
pub(super) const DRIFT: u8 = 2;
/// Some of it was done, and some not.
pub(super) const PARTIAL: u8 = 3;
/// The doctor found something that hurts now, or too few hub servers are whole.
pub(super) const FAILURES: u8 = 3;
pub(super) const INVALID: u8 = 4;
pub(super) const NOT_READY: u8 = 5;
pub(super) const UNREACHABLE: u8 = 6;
pub(super) const REFUSED: u8 = 7;

/// For whoever cannot reach the hub or core.
const WAY_OUT: &str = "; `bulkhead doctor` says what is away and what to do";

/// For whom the hub does not admit.
const NOT_ADMITTED: &str = "; the hub does not admit this user: it was put out, its files have expired or were issued anew \
                            since, or its tenant is suspended, gone, or has all the connections that its plan allows; whoever gave out the profile can say which";

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(super) fn new(code: u8, error: &(dyn Error + 'static)) -> Self {
        let mut message = reason(error);
        if code == UNREACHABLE {
            message.push_str(WAY_OUT);
        }
        Self { code, message }
    }

    pub(super) fn failed(error: impl Error + 'static) -> Self {
        Self::new(FAILED, &error)
    }

    pub(super) fn invalid(what: &str, error: impl Error + 'static) -> Self {
        Self { code: INVALID, message: format!("{what}: {}", reason(&error)) }
    }

    /// Whoever read our output has gone: nothing is left to do, and nothing to complain about.
    pub(super) fn reader_gone() -> Self {
        Self { code: DONE, message: String::new() }
    }

    /// What was printed says it all; only the code is left to say.
    pub(super) fn silent(code: u8) -> Self {
        Self { code, message: String::new() }
    }

    pub(super) fn with(code: u8, message: String) -> Self {
        Self { code, message }
    }

    /// What was asked for is not done because of a condition that was asked for as well.
    pub(super) fn refused_change(message: String) -> Self {
        Self { code: INVALID, message }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn not_ready(message: String) -> Self {
        Self { code: NOT_READY, message }
    }

    pub(super) fn code(&self) -> u8 {
        self.code
    }

    pub(super) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            // Nobody may be listening there either.
            let _ = writeln!(std::io::stderr(), "bulkhead: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        if error.is_refused() {
            let failure = Self::new(REFUSED, &error);
            return Self { message: failure.message + NOT_ADMITTED, ..failure };
        }
        let code = match &error {
            ConnectError::Connect { .. } => UNREACHABLE,
            ConnectError::Address(_)
            | ConnectError::NoAddress
            | ConnectError::Tls(_)
            | ConnectError::Credentials(_) => INVALID,
        };
        Self::new(code, &error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Request { source: RequestError::NobodyAnswers(_) | RequestError::Timeout { .. }, .. } => {
                UNREACHABLE
            }
            ClientError::Request { source: RequestError::NotPermitted(_), .. } => REFUSED,
            ClientError::Request {
                source: RequestError::Unreadable(..) | RequestError::Refused { .. } | RequestError::Other { .. },
                ..
            }
            | ClientError::Unreadable { .. } => FAILED,
            ClientError::Refused { code, .. } => match code {
                ErrorCode::Invalid | ErrorCode::NotFound | ErrorCode::Conflict => INVALID,
                ErrorCode::Refused | ErrorCode::OverQuota | ErrorCode::Fenced | ErrorCode::NotSigned => REFUSED,
                ErrorCode::Unavailable => UNREACHABLE,
            },
        };
        Self::new(code, &error)
    }
}

impl From<DeploymentError> for Failure {
    fn from(error: DeploymentError) -> Self {
        let is_late = matches!(error, DeploymentError::NotReady(..) | DeploymentError::Undrained { .. });
        let code = if is_late { NOT_READY } else { FAILED };
        Self::new(code, &error)
    }
}

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Self {
        let code = match &error {
            CertificateError::Blocked { .. } => REFUSED,
            CertificateError::NoAuthority { .. }
            | CertificateError::NeverIssued { .. }
            | CertificateError::NotRotating { .. }
            | CertificateError::OtherStep { .. }
            | CertificateError::Identity { .. } => INVALID,
            CertificateError::File(_)
            | CertificateError::Damaged { .. }
            | CertificateError::Missing { .. }
            | CertificateError::Make { .. }
            | CertificateError::Unreadable { .. }
            | CertificateError::Mismatch { .. }
            | CertificateError::Store { .. }
            | CertificateError::Ended { .. }
            | CertificateError::NotOurs { .. }
            | CertificateError::Revoked { .. } => FAILED,
        };
        Self::new(code, &error)
    }
}
