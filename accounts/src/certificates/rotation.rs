//! Replacing an authority while both the old and the new one are trusted.
//!
//! `prepare` makes the new one, which signs from then on; `finish` takes the old one out of every trust file; `abandon`
//! takes the new one out. Servers read trust files when they are reloaded: reload all of them after each step.

use std::path::PathBuf;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::CertificateFiles;
use super::authority::{Authority, SigningPair, read_pair};
use super::book::IssuedRecord;
use super::error::CertificateError;
use super::facts::read_bundle;
use super::steps::Change;
use crate::files::read_state;
use bulkhead_identity::AuthorityName;

/// What is done with a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationStep {
    Prepare,
    Finish,
    Abandon,
}

/// What becomes of certificates that a step would cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objections {
    /// The step is refused while there are any.
    Heed,
    Override,
}

/// A step of a rotation: what it changes on disk, and whom it cuts off.
#[derive(Debug, Clone, Serialize)]
pub struct Rotation {
    pub name: AuthorityName,
    pub step: RotationStep,
    /// Empty when there is nothing left to do.
    pub changes: Vec<Change>,
    /// Certificates that are good, not revoked, and trusted by nobody after this step.
    pub blocked_by: Vec<IssuedRecord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    Overlap,
    Finishing,
    Abandoning,
}

/// The one file that says how far a rotation is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) old_key: String,
    pub(super) new_key: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) since: OffsetDateTime,
}

/// Which of the two authorities of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Old,
    New,
}

impl Side {
    fn file_name(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }

    pub(super) fn key(self, state: &State) -> &str {
        match self {
            Self::Old => &state.old_key,
            Self::New => &state.new_key,
        }
    }
}

impl Authority {
    pub(super) fn rotation_folder(&self, name: &AuthorityName) -> PathBuf {
        self.folder.join("rotations").join(name.file_name())
    }

    pub(super) fn rotation_state_file(&self, name: &AuthorityName) -> PathBuf {
        self.rotation_folder(name).join("state.json")
    }

    pub(super) fn side_files(&self, name: &AuthorityName, side: Side) -> CertificateFiles {
        let (folder, side) = (self.rotation_folder(name), side.file_name());
        // Not .crt: these are no trust files.
        CertificateFiles { cert_file: folder.join(format!("{side}.pem")), key_file: folder.join(format!("{side}.key")) }
    }

    pub(super) fn cross_file(&self, name: &AuthorityName) -> PathBuf {
        self.rotation_folder(name).join("cross.pem")
    }

    pub(super) fn rotation_state(&self, name: &AuthorityName) -> Result<Option<State>, CertificateError> {
        let path = self.rotation_state_file(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_state(&path).map_err(CertificateError::File)?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| CertificateError::Unreadable { path: path.display().to_string(), why: error.to_string() })
    }

    pub(super) fn rotation_phase(&self, name: &AuthorityName) -> Result<Option<&'static str>, CertificateError> {
        Ok(self.rotation_state(name)?.map(|state| match state.phase {
            Phase::Overlap => "overlap",
            Phase::Finishing => "finishing",
            Phase::Abandoning => "abandoning",
        }))
    }

    /// Every key of an authority that stays trusted: the one that signs and, during a rotation, the other one.
    pub(super) fn live_pairs(&self, name: &AuthorityName) -> Result<Vec<SigningPair>, CertificateError> {
        let mut pairs = vec![self.signing(name)?];
        let Some(state) = self.rotation_state(name)? else { return Ok(pairs) };
        for side in [Side::New, Side::Old] {
            let is_going = match state.phase {
                Phase::Overlap => false,
                Phase::Finishing => side == Side::Old,
                Phase::Abandoning => side == Side::New,
            };
            if !is_going && side.key(&state) != pairs[0].key_hash() {
                pairs.push(read_pair(&self.side_files(name, side))?);
            }
        }
        Ok(pairs)
    }

    /// The new root as the old one vouches for it, and the old one's key: behind a server's certificate it leads those who
    /// know only the old root to the new one.
    pub(super) fn cross_certificate(
        &self,
        root: &AuthorityName,
        signing_key: &str,
    ) -> Result<Option<(CertificateDer<'static>, String)>, CertificateError> {
        let path = self.cross_file(root);
        match self.rotation_state(root)? {
            Some(state) if state.phase == Phase::Overlap && state.new_key == signing_key && path.exists() => {
                let cross = read_bundle(&path)?.into_iter().next();
                Ok(cross.map(|cross| (cross, state.old_key)))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// What a step would change and whom it would cut off. Changes nothing.
    ///
    /// # Errors
    /// When there is no such authority, the rotation is at another step, or files cannot be read.
    pub fn plan_rotation(
        &self,
        name: &AuthorityName,
        step: RotationStep,
        now: OffsetDateTime,
    ) -> Result<Rotation, CertificateError> {
        if !self.files(name).cert_file.exists() {
            return Err(CertificateError::NoAuthority { name: name.clone() });
        }
        let (changes, blocked_by) = match step {
            RotationStep::Prepare => (self.plan_prepare(name, now)?, vec![]),
            RotationStep::Finish => self.plan_end(name, Side::Old, now)?,
            RotationStep::Abandon => self.plan_end(name, Side::New, now)?,
        };
        Ok(Rotation { name: name.clone(), step, changes, blocked_by })
    }

    /// Takes a step. Cut off at any point, the same call goes on from there.
    ///
    /// # Errors
    /// As [`Authority::plan_rotation`]; when certificates would be cut off and `objections` are heeded; when files cannot
    /// be written.
    pub fn rotate(
        &self,
        name: &AuthorityName,
        (step, objections): (RotationStep, Objections),
        now: OffsetDateTime,
    ) -> Result<Rotation, CertificateError> {
        let _lock = self.lock()?;
        let rotation = self.plan_rotation(name, step, now)?;
        if !rotation.blocked_by.is_empty() && objections == Objections::Heed {
            return Err(CertificateError::Blocked { by: rotation.blocked_by });
        }
        rotation.changes.iter().try_for_each(Change::apply)?;
        self.renew_list(name, now)?;
        self.renew_list(&AuthorityName::ClientRoot, now)?;
        Ok(rotation)
    }
}
