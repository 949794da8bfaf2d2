//! A tenant that is gone: its intermediate opens nothing any more, whoever gets the slug next.

use bulkhead_bus::TenantSlug;
use time::OffsetDateTime;

use super::authority::Authority;
use super::error::CertificateError;
use super::facts::facts_in;
use super::steps::{Change, Draft, Step};
use bulkhead_identity::AuthorityName;

const KEY_LABEL_LENGTH: usize = 12;

impl Authority {
    /// Takes a tenant's intermediate out of use: it is revoked in the client root's list and moved into `retired`, with its
    /// key and its books. Cut off at any point, the same call goes on. Returns whether there was anything to do.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn forget_tenant(&self, tenant: &TenantSlug, now: OffsetDateTime) -> Result<bool, CertificateError> {
        let _lock = self.lock()?;
        let changes = self.plan_forgetting(tenant, now)?;
        changes.iter().try_for_each(Change::apply)?;
        self.renew_list(&AuthorityName::ClientRoot, now)?;
        Ok(!changes.is_empty())
    }

    /// Destroys the private keys of a tenant's intermediates that are out of use; their certificates and books stay, for whoever
    /// asks what was issued.
    ///
    /// # Errors
    /// When a key cannot be removed.
    pub fn destroy_retired(&self, tenant: &TenantSlug) -> Result<(), CertificateError> {
        let _lock = self.lock()?;
        let start = format!("{}-", AuthorityName::Tenant(tenant.clone()).file_name());
        let is_label = |label: &str| label.len() == KEY_LABEL_LENGTH && label.bytes().all(|b| b.is_ascii_hexdigit());
        for entry in std::fs::read_dir(self.folder.join("retired")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_own = name.to_str().and_then(|name| name.strip_prefix(&start)).is_some_and(is_label);
            let key = entry.path().join("authority.key");
            if is_own && key.exists() {
                let path = key.display().to_string();
                std::fs::remove_file(&key).map_err(|source| CertificateError::Store {
                    action: "destroy",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn plan_forgetting(
        &self,
        tenant: &TenantSlug,
        now: OffsetDateTime,
    ) -> Result<Vec<Change>, CertificateError> {
        let name = AuthorityName::Tenant(tenant.clone());
        let files = self.files(&name);
        let mut draft = Draft::default();
        if !files.cert_file.exists() {
            return Ok(vec![]);
        }
        let bundle = draft.bundle(&files.cert_file)?;
        self.draft_revoked(&mut draft, &name, &bundle, now)?;
        let label = &facts_in(&files.cert_file, &bundle[0])?.key_fingerprint[..KEY_LABEL_LENGTH];
        let folder = self.folder.join("retired").join(format!("{}-{label}", name.file_name()));
        // The key first: from then on nothing is signed. The certificate last: while it is there the rest can be found.
        let moves = [
            (files.key_file, "authority.key"),
            (self.list_file(&name), "authority.crl"),
            (self.issued_file(&name), "issued.jsonl"),
            (self.revoked_file(&name), "revoked.jsonl"),
            (self.rotation_folder(&name), "rotation"),
            (files.cert_file, "authority.pem"),
        ];
        for (from, to) in moves {
            if from.exists() {
                draft.add(Step::Move { from, to: folder.join(to) });
            }
        }
        Ok(draft.changes)
    }
}
