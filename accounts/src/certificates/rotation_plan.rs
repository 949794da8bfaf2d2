//! The steps of a rotation, planned from what is on disk.
//!
//! The order is what makes them safe: trust is added before anything is signed with it, and taken away after. The key
//! file is the switch, one rename; the file with the state decides which way a run that was cut off goes on.

use rcgen::{KeyPair, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{Authority, SigningPair, read_pair};
use super::book::IssuedRecord;
use super::error::CertificateError;
use super::facts::{InspectError, bundle_pem, facts_in, is_signed_by, read_bundle, unreadable};
use super::make::{authority_parameters, authority_subject, cross_parameters, key_hash, made};
use super::revocation::{Reason, RevokedRecord};
use super::rotation::{Phase, Side, State};
use super::steps::{Change, Draft, Step};
use crate::files::read_state;
use bulkhead_identity::AuthorityName;

const KEY_LABEL_LENGTH: usize = 12;

/// The new authority of a rotation, as it is or will be on disk.
struct Coming {
    pair: SigningPair,
    key_text: String,
}

impl Authority {
    pub(super) fn plan_prepare(
        &self,
        name: &AuthorityName,
        now: OffsetDateTime,
    ) -> Result<Vec<Change>, CertificateError> {
        let mut draft = Draft::default();
        let coming = match self.rotation_state(name)? {
            None => self.draft_new(&mut draft, name, now)?,
            Some(state) if state.phase == Phase::Overlap => self.read_coming(name)?,
            Some(state) => return Err(other_step(name, state.phase)),
        };
        self.draft_overlap(&mut draft, name, &coming, now)?;
        Ok(draft.changes)
    }

    fn read_coming(&self, name: &AuthorityName) -> Result<Coming, CertificateError> {
        let files = self.side_files(name, Side::New);
        let key_text = read_state(&files.key_file).map_err(CertificateError::File)?;
        Ok(Coming { pair: read_pair(&files)?, key_text })
    }

    /// Makes the new authority and lays both aside; nothing trusts or uses it yet. What a run has left that was cut off
    /// before the state was written is overwritten.
    fn draft_new(
        &self,
        draft: &mut Draft,
        name: &AuthorityName,
        now: OffsetDateTime,
    ) -> Result<Coming, CertificateError> {
        let own = self.files(name);
        let old = self.signing(name)?;
        let key = made(&name.to_string(), KeyPair::generate())?;
        let (certificates, records) = self.make_authority(name, &key, now)?;
        let (old_files, new_files) = (self.side_files(name, Side::Old), self.side_files(name, Side::New));
        let old_key_text = read_state(&own.key_file).map_err(CertificateError::File)?;
        draft.add(Step::Write { path: old_files.cert_file, text: bundle_pem(&old.certificates) });
        draft.add(Step::WriteSecret { path: old_files.key_file, text: old_key_text });
        let new_key_text = key.serialize_pem();
        draft.add(Step::WriteSecret { path: new_files.key_file, text: new_key_text.clone() });
        draft.add(Step::Write { path: new_files.cert_file.clone(), text: bundle_pem(&certificates) });
        for record in records {
            draft.append(self.issued_file(&AuthorityName::ClientRoot), &record)?;
        }
        if matches!(name, AuthorityName::ServerRoot | AuthorityName::RouteRoot) {
            let subject = authority_subject(name, &key, &self.domain);
            let params = cross_parameters(name, &subject, &self.domain, now);
            let cross = old.sign(name, &subject, params, &key)?;
            draft.append(self.issued_file(name), &self.record_of(name, &cross, &old, vec![])?)?;
            draft.add(Step::Write { path: self.cross_file(name), text: bundle_pem(&[cross]) });
        }
        let state =
            State { phase: Phase::Overlap, old_key: old.key_hash().to_owned(), new_key: key_hash(&key), since: now };
        self.draft_state(draft, name, &state)?;
        let facts = facts_in(&new_files.cert_file, &certificates[0])?;
        let issuer = made(&facts.subject, rcgen::Issuer::from_ca_cert_der(&certificates[0], key))?;
        Ok(Coming { pair: SigningPair { issuer, certificates, facts }, key_text: new_key_text })
    }

    fn draft_state(&self, draft: &mut Draft, name: &AuthorityName, state: &State) -> Result<(), CertificateError> {
        let path = self.rotation_state_file(name);
        let text = serde_json::to_string(state).map_err(|error| CertificateError::Unreadable {
            path: path.display().to_string(),
            why: error.to_string(),
        })?;
        draft.add(Step::Write { path, text: text + "\n" });
        Ok(())
    }

    /// Both are trusted, then the new one signs.
    fn draft_overlap(
        &self,
        draft: &mut Draft,
        name: &AuthorityName,
        coming: &Coming,
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        let own = self.files(name);
        // Trust before use: the file of the root comes before anything that leads to the new one.
        let bundle = draft.bundle(&own.cert_file)?;
        if !keys_of(&own.cert_file, &bundle)?.iter().any(|key| key == coming.pair.key_hash()) {
            draft.write_bundle(&own.cert_file, &[coming.pair.certificates.clone(), bundle].concat())?;
        }
        if *name == AuthorityName::ClientRoot {
            self.draft_signed_by(draft, &coming.pair, now)?;
        }
        draft.write_key(&own.key_file, &coming.key_text);
        Ok(())
    }

    /// Has `root` sign every intermediate that it has not signed yet: same name, same key.
    fn draft_signed_by(
        &self,
        draft: &mut Draft,
        root: &SigningPair,
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        for name in self.list_intermediates()? {
            let path = self.files(&name).cert_file;
            let bundle = draft.bundle(&path)?;
            let keys = keys_of(&path, &bundle)?;
            let mut signed: Vec<&str> = Vec::new();
            for (certificate, key) in bundle.iter().zip(&keys) {
                if is_signed_by(certificate, &root.certificates[0]) {
                    signed.push(key);
                }
            }
            let mut added: Vec<CertificateDer<'static>> = Vec::new();
            let mut seen = signed.clone();
            for (certificate, key) in bundle.iter().zip(&keys) {
                if seen.contains(&key.as_str()) {
                    continue;
                }
                seen.push(key);
                let again = self.sign_again(&name, certificate, root, now)?;
                let roots = vec![root.key_hash().to_owned()];
                let record = self.record_of(&AuthorityName::ClientRoot, &again, root, roots)?;
                draft.append(self.issued_file(&AuthorityName::ClientRoot), &record)?;
                added.push(again);
            }
            draft.write_bundle(&path, &[added, bundle].concat())?;
        }
        Ok(())
    }

    fn sign_again(
        &self,
        name: &AuthorityName,
        certificate: &CertificateDer<'_>,
        root: &SigningPair,
        now: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, CertificateError> {
        let path = self.files(name).cert_file;
        let facts = facts_in(&path, certificate)?;
        let parsed = X509Certificate::from_der(certificate);
        let (_, parsed) = parsed.map_err(|error| unreadable(&path)(InspectError(error.to_string())))?;
        let key = made(&facts.subject, SubjectPublicKeyInfo::from_der(parsed.public_key().raw))?;
        let params = authority_parameters(name, &facts.subject, &self.domain, now);
        root.sign(&AuthorityName::ClientRoot, &facts.subject, params, &key)
    }

    /// Takes one side of a rotation out of every trust file.
    pub(super) fn plan_end(
        &self,
        name: &AuthorityName,
        going: Side,
        now: OffsetDateTime,
    ) -> Result<(Vec<Change>, Vec<IssuedRecord>), CertificateError> {
        let ending = if going == Side::Old { Phase::Finishing } else { Phase::Abandoning };
        let Some(state) = self.rotation_state(name)? else {
            return Err(CertificateError::NotRotating { name: name.clone() });
        };
        let mut draft = Draft::default();
        let mut blocked_by = Vec::new();
        if state.phase == Phase::Overlap {
            blocked_by = self.resting_on(name, going, (&state, now))?;
            if going == Side::Old {
                let coming = self.read_coming(name)?;
                self.draft_overlap(&mut draft, name, &coming, now)?;
            }
            self.draft_state(&mut draft, name, &State { phase: ending, ..state.clone() })?;
        } else if state.phase != ending {
            return Err(other_step(name, state.phase));
        }
        self.draft_end(&mut draft, name, (going, &state), now)?;
        Ok((draft.changes, blocked_by))
    }

    fn draft_end(
        &self,
        draft: &mut Draft,
        name: &AuthorityName,
        (going, state): (Side, &State),
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        let own = self.files(name);
        let (goes, stays) = (self.side_files(name, going), self.side_files(name, going.other()));
        draft.write_key(&own.key_file, &read_state(&stays.key_file).map_err(CertificateError::File)?);
        let gone = read_bundle(&goes.cert_file)?;
        if *name == AuthorityName::ClientRoot {
            self.draft_signed_by(draft, &read_pair(&stays)?, now)?;
            for intermediate in self.list_intermediates()? {
                let path = self.files(&intermediate).cert_file;
                let kept: Vec<_> =
                    draft.bundle(&path)?.into_iter().filter(|kept| !is_signed_by(kept, &gone[0])).collect();
                draft.write_bundle(&path, &kept)?;
            }
        }
        let bundle = draft.bundle(&own.cert_file)?;
        let keys = keys_of(&own.cert_file, &bundle)?;
        let (out, kept): (Vec<_>, Vec<_>) = bundle.into_iter().zip(keys).partition(|(_, key)| key == going.key(state));
        if !name.is_root() {
            let out: Vec<_> = out.into_iter().map(|(certificate, _)| certificate).collect();
            self.draft_revoked(draft, name, &[out, gone].concat(), now)?;
        }
        let kept: Vec<_> = kept.into_iter().map(|(certificate, _)| certificate).collect();
        draft.write_bundle(&own.cert_file, &kept)?;
        let label = &going.key(state)[..KEY_LABEL_LENGTH];
        let to = self.folder.join("retired").join(format!("{}-{label}", name.file_name()));
        draft.add(Step::Move { from: self.rotation_folder(name), to });
        Ok(())
    }

    /// A root goes on vouching for an intermediate that is in no trust file any more, until its list says otherwise.
    pub(super) fn draft_revoked(
        &self,
        draft: &mut Draft,
        name: &AuthorityName,
        certificates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        let root = AuthorityName::ClientRoot;
        let mut known: Vec<String> = self.list_revoked(&root)?.into_iter().map(|record| record.serial).collect();
        let path = self.files(name).cert_file;
        for certificate in certificates {
            let facts = facts_in(&path, certificate)?;
            let signers = self.live_pairs(&root)?;
            let signer = signers.iter().find(|signer| is_signed_by(certificate, &signer.certificates[0]));
            let Some(signer) = signer.filter(|_| !known.contains(&facts.serial)) else { continue };
            known.push(facts.serial.clone());
            let record = RevokedRecord {
                serial: facts.serial,
                identity: facts.subject,
                issuer_key: signer.key_hash().to_owned(),
                reason: Reason::Superseded,
                at: now,
                not_after: facts.not_after,
            };
            draft.append(self.revoked_file(&root), &record)?;
        }
        Ok(())
    }

    /// Certificates that are good and not revoked, and that nobody trusts any more when `going` is gone.
    fn resting_on(
        &self,
        name: &AuthorityName,
        going: Side,
        (state, now): (&State, OffsetDateTime),
    ) -> Result<Vec<IssuedRecord>, CertificateError> {
        let (goes, stays) = (going.key(state), going.other().key(state));
        let books = if *name == AuthorityName::ClientRoot { self.list_intermediates()? } else { vec![name.clone()] };
        let mut found = Vec::new();
        for book in books {
            let revoked = self.list_revoked(&book)?;
            found.extend(self.list_issued(&book)?.into_iter().filter(|record| {
                let rests = if name.is_root() {
                    record.roots.iter().any(|root| root == goes) && !record.roots.iter().any(|root| root == stays)
                } else {
                    record.issuer_key == goes
                };
                rests && record.not_after > now && !revoked.iter().any(|one| one.serial == record.serial)
            }));
        }
        Ok(found)
    }
}

fn other_step(name: &AuthorityName, phase: Phase) -> CertificateError {
    let step = if phase == Phase::Finishing { "finish" } else { "abandon" };
    CertificateError::OtherStep { name: name.clone(), step }
}

fn keys_of(path: &std::path::Path, bundle: &[CertificateDer<'_>]) -> Result<Vec<String>, CertificateError> {
    bundle.iter().map(|certificate| Ok(facts_in(path, certificate)?.key_fingerprint)).collect()
}
