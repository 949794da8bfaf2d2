//! Files that are open, end soon, do not belong together, or are served by nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bulkhead_accounts::certificates::{CertificateFiles, ClientIdentity};
use bulkhead_accounts::operator::UserRequest;
use bulkhead_bus::Role;
use time::{Duration, OffsetDateTime};

use crate::patient::Patient;

/// Puts a file back as it was when it is dropped.
struct Kept {
    path: std::path::PathBuf,
    bytes: Vec<u8>,
}

impl Kept {
    fn new(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_owned(), bytes: fs::read(path)? })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        fs::write(&self.path, &self.bytes).expect("put a file back");
    }
}

fn keep(files: &CertificateFiles) -> anyhow::Result<[Kept; 2]> {
    Ok([Kept::new(&files.cert_file)?, Kept::new(&files.key_file)?])
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

pub(crate) async fn modes_certificates_and_credentials(patient: &Patient) -> anyhow::Result<()> {
    modes(patient).await?;
    a_hub_certificate_near_its_end(patient).await?;
    certificates_that_do_not_hold_together(patient).await?;
    credentials_that_end(patient).await?;
    patient.is_well(&["certificates", "permissions"]).await?;
    Ok(())
}

async fn modes(patient: &Patient) -> anyhow::Result<()> {
    let secret = patient.home("secrets/postgres-core.url");
    set_mode(&secret, 0o644)?;
    let said = patient.has(&["permissions"], &["fail secret-mode secrets/postgres-core.url"]).await?;
    let advice = &said.of("secret-mode", "secrets/postgres-core.url")?["advice"];
    assert_eq!(advice, &format!("chmod 600 {}", secret.display()));
    set_mode(&secret, 0o600)?;
    set_mode(&patient.home("pki"), 0o755)?;
    patient.has(&["permissions"], &["fail secret-folder pki"]).await?;
    set_mode(&patient.home("pki"), 0o700)?;
    Ok(())
}

/// Renewed on disk and not loaded: the file and what is served are two things.
async fn a_hub_certificate_near_its_end(patient: &Patient) -> anyhow::Result<()> {
    let files = CertificateFiles::named(&patient.home("hub"), "hub");
    let _kept = keep(&files)?;
    let authority = &patient.deployment.up.platform.authority;
    let served = ["warn certificate-served hub-1 for clients", "warn certificate-served hub-1 for leaves"];
    authority.issue_hub("hub-1", &[], &files, OffsetDateTime::now_utc() - Duration::days(80))?;
    patient.has(&["certificates"], &["warn certificate-expiry hub/hub.crt", served[0], served[1]]).await?;
    authority.issue_hub("hub-1", &[], &files, OffsetDateTime::now_utc() - Duration::days(91))?;
    let said = patient.has(&["certificates"], &["fail certificate-expiry hub/hub.crt", served[0], served[1]]).await?;
    assert_eq!(said.level("certificate-chain", "hub/hub.crt")?, "ok", "its age is another look's");
    Ok(())
}

async fn certificates_that_do_not_hold_together(patient: &Patient) -> anyhow::Result<()> {
    let authority = &patient.deployment.up.platform.authority;
    let now = OffsetDateTime::now_utc();
    let files = CertificateFiles::named(&patient.home("profiles/acme-corp-admin"), "admin");
    let subject = "profiles/acme-corp-admin/admin.crt";
    let kept = keep(&files)?;
    // Somebody else's key.
    fs::copy(patient.home("profiles/xyz-inc-admin/admin.key"), &files.key_file)?;
    patient.has(&["certificates"], &[&format!("fail certificate-key {subject}")]).await?;
    // A server's certificate where a person's should be.
    authority.issue_hub("hub-1", &[], &files, now)?;
    patient.has(&["certificates"], &[&format!("fail certificate-chain {subject}")]).await?;
    fs::write(&files.cert_file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")?;
    patient.has(&["certificates"], &[&format!("fail certificate-chain {subject}")]).await?;
    drop(kept);
    // One of another authority that has the same names.
    let elsewhere = tempfile::tempdir()?;
    let stranger = bulkhead_accounts::certificates::Authority::new(
        elsewhere.path().to_owned(),
        bulkhead_accounts::certificates::TrustDomain::default(),
    );
    stranger.ensure_roots(now)?;
    let files = CertificateFiles::named(&patient.home("profiles/ops"), "admin");
    let _kept = keep(&files)?;
    stranger.issue_client(&ClientIdentity::PlatformUser { user: "admin".parse()? }, &files, now)?;
    patient.has(&["certificates"], &["fail certificate-chain profiles/ops/admin.crt"]).await?;
    Ok(())
}

async fn credentials_that_end(patient: &Patient) -> anyhow::Result<()> {
    let platform = &patient.deployment.up.platform;
    let path = patient.home("provisioning/gate-writer.creds");
    let subject = "credentials-expiry provisioning/gate-writer.creds";
    let _kept = Kept::new(&path)?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let day = 86_400;
    for (issued, expires, level) in [(now - 25 * day, now + 5 * day, "warn"), (now - 30 * day, now - 60, "fail")] {
        let user = UserRequest { account: "auth", role: Role::GateWriter, name: "gate-writer", site: None, expires };
        fs::write(&path, platform.operator.issue_user(&user, issued)?.text.as_bytes())?;
        patient.has(&["certificates"], &[&format!("{level} {subject}")]).await?;
    }
    fs::write(&path, "no credentials")?;
    patient.has(&["certificates"], &[&format!("fail {subject}")]).await?;
    Ok(())
}
