//! The operator's store of this machine's deployment, for the commands that work on it.

use std::path::Path;

use super::exit::Failure;
use crate::operator::{OperatorError, OperatorStore};
use crate::up::Layout;

/// # Errors
/// When there is none, or it is damaged.
pub(super) fn open_store(home: &Path) -> Result<OperatorStore, Failure> {
    let folder = Layout::new(home.to_owned()).operator();
    let none = || {
        let way_out = "`bulkhead up` makes one, `bulkhead nsc import DIR` takes one over";
        Failure::invalid(
            "operator store",
            std::io::Error::other(format!("there is none in {}; {way_out}", home.display())),
        )
    };
    OperatorStore::read(folder).map_err(Failure::failed)?.ok_or_else(none)
}

/// What an operator can put right is invalid input; the rest has failed.
pub(super) fn store_failure(error: OperatorError) -> Failure {
    match error {
        OperatorError::NoAccount(_)
        | OperatorError::NoRole(..)
        | OperatorError::Name(_)
        | OperatorError::NoUser(_)
        | OperatorError::NotSigning(_)
        | OperatorError::NoOperatorKey(_)
        | OperatorError::StillSigns { .. }
        | OperatorError::InUseKey(_)
        | OperatorError::NoStandby(_)
        | OperatorError::Rotating { .. }
        | OperatorError::NotRotating(..)
        | OperatorError::Unmanaged(_)
        | OperatorError::System => Failure::invalid("operator store", error),
        OperatorError::File(_)
        | OperatorError::Key(_)
        | OperatorError::Token { .. }
        | OperatorError::AccountKey { .. }
        | OperatorError::ForeignEdit { .. }
        | OperatorError::Book { .. }
        | OperatorError::InUse { .. }
        | OperatorError::Lock { .. }
        | OperatorError::Several { .. }
        | OperatorError::NoSigner
        | OperatorError::Move { .. } => Failure::failed(error),
    }
}

/// Refuses to write into what is there already.
///
/// # Errors
/// When something is at the path.
pub(super) fn refuse_existing(path: &Path) -> Result<(), Failure> {
    if !path.exists() {
        return Ok(());
    }
    let said = format!("{} is there already: name a new one", path.display());
    Err(Failure::invalid("--to", std::io::Error::other(said)))
}
