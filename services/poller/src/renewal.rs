//! Renews the certificates of an enrolled machine when they have lived two thirds of their lives, for the keys that it has, and has
//! the leaf read them again. Nothing is interrupted: whoever is connected stays so, and shows the new one the next time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_identity::{DeviceEnd, EnrolmentAnswer, RENEW_PATH, RenewalRequest, is_due_for_renewal};
use bulkhead_runtime::{Chain, Stop, now_ms};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::batch::Identity;
use crate::enroll::{AskError, DeskClient, FolderError, PUBLIC, SiteFolder};
use crate::keeper::{Keeper, KeeperError};
use crate::metrics::{Metrics, count};

const LOOK_EVERY: Duration = Duration::from_secs(60);
const AGAIN_FIRST: Duration = Duration::from_secs(60);
const AGAIN_MOST: Duration = Duration::from_secs(3_600);
/// What may come beside the certificates: whom to trust.
const TRUSTED: [&str; 2] = ["tls/tenant.crt", "tls/hub-root.crt"];

/// Where certificates are renewed, and where they are.
#[derive(Debug, Clone)]
pub(crate) struct RenewalSettings {
    pub(crate) urls: Vec<String>,
    pub(crate) folder: PathBuf,
    pub(crate) proxy: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("read {path}")]
    Pem { path: String, source: rustls_pki_types::pem::Error },
    #[error("read {path}: {problem}")]
    Certificate { path: String, problem: String },
    #[error("read key {path}")]
    Key { path: String, source: std::io::Error },
    #[error("use key {path}")]
    Sign { path: String, source: rcgen::Error },
    #[error("ask for certificates")]
    Ask(#[source] AskError),
    #[error("what was answered: {0}")]
    Answer(String),
    #[error("write certificates")]
    Folder(#[source] FolderError),
    #[error("have the leaf read its files")]
    Tell(#[source] KeeperError),
}

/// What a certificate of ours says.
struct Held {
    subject: String,
    dns: Vec<String>,
    uris: Vec<String>,
    /// Unix seconds.
    begins: i64,
    ends: i64,
}

impl Held {
    fn read(path: &Path) -> Result<Self, RenewalError> {
        let shown = path.display().to_string();
        let der =
            CertificateDer::from_pem_file(path).map_err(|source| RenewalError::Pem { path: shown.clone(), source })?;
        let unreadable = |problem: String| RenewalError::Certificate { path: shown.clone(), problem };
        let (_, read) = X509Certificate::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
        let subject = read.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let mut held = Self {
            subject: subject.ok_or_else(|| unreadable("it has no common name".to_owned()))?.to_owned(),
            dns: vec![],
            uris: vec![],
            begins: read.validity().not_before.timestamp(),
            ends: read.validity().not_after.timestamp(),
        };
        let names = read.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        for name in names.into_iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::DNSName(name) = name {
                held.dns.push((*name).to_owned());
            } else if let GeneralName::URI(uri) = name {
                held.uris.push((*uri).to_owned());
            }
        }
        Ok(held)
    }

    fn request(&self, key: &KeyPair) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::new(self.dns.clone())?;
        for uri in &self.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.subject.clone());
        params.serialize_request(key)?.pem()
    }
}

/// Looks after the certificates of one poller and of the leaf beside it.
pub(crate) struct Renewal {
    pub(crate) settings: RenewalSettings,
    pub(crate) identity: Identity,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Renewal {
    /// Until `stop`.
    ///
    /// # Errors
    /// Never: what fails is tried again, ever more rarely up to once an hour.
    pub(crate) async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The last start may have ended between writing and telling.
        let mut is_told = false;
        let (mut pause, mut next) = (AGAIN_FIRST, Instant::now());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return Ok(()),
            }
            if Instant::now() < next {
                continue;
            }
            let looked = tokio::select! {
                looked = self.look(&mut is_told) => looked,
                () = stop.cancelled() => return Ok(()),
            };
            match looked {
                Ok(()) => (pause, next) = (AGAIN_FIRST, Instant::now()),
                Err(error) => {
                    count(&self.metrics.renewals_failed, 1);
                    warn!(error = %Chain(&error), "certificates are not renewed; it is tried again");
                    next = Instant::now() + pause;
                    pause = (pause * 2).min(AGAIN_MOST);
                }
            }
        }
    }

    async fn look(&self, is_told: &mut bool) -> Result<(), RenewalError> {
        let due = self.due()?;
        if !due.is_empty() {
            let answer = self.ask(&due).await?;
            self.check(&answer, &due)?;
            // Whom to trust first, and until the leaf does: by a certificate of a new authority nobody is let in there before.
            self.place(&answer, |path| TRUSTED.contains(&path))?;
            self.keeper.have_files_read().await.map_err(RenewalError::Tell)?;
            *is_told = false;
            self.place(&answer, |path| !TRUSTED.contains(&path))?;
            count(&self.metrics.renewals, 1);
            info!(ends_at = answer.ends_at, "certificates are renewed");
            self.due()?;
        }
        if !*is_told {
            self.keeper.have_files_read().await.map_err(RenewalError::Tell)?;
            *is_told = true;
        }
        Ok(())
    }

    fn file(&self, end: DeviceEnd, ending: &str) -> PathBuf {
        self.settings.folder.join(format!("{}.{ending}", end.path(&self.identity.poller)))
    }

    /// What has lived long enough; notes when the first of all ends.
    fn due(&self) -> Result<Vec<(DeviceEnd, Held)>, RenewalError> {
        let mut held = Vec::new();
        for end in DeviceEnd::ALL {
            held.push((end, Held::read(&self.file(end, "crt"))?));
        }
        let first = held.iter().map(|(_, one)| one.ends).min().unwrap_or_default();
        self.metrics.certificate_end_timestamp_seconds.set(first);
        let now_s = now_ms() / 1_000;
        held.retain(|(_, one)| is_due_for_renewal(one.begins, one.ends, now_s));
        Ok(held)
    }

    fn key(&self, end: DeviceEnd) -> Result<KeyPair, RenewalError> {
        let path = self.file(end, "key");
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new);
        let text = text.map_err(|source| RenewalError::Key { path: shown.clone(), source })?;
        KeyPair::from_pem(&text).map_err(|source| RenewalError::Sign { path: shown, source })
    }

    async fn ask(&self, due: &[(DeviceEnd, Held)]) -> Result<EnrolmentAnswer, RenewalError> {
        let mut csrs = Vec::new();
        for (end, held) in due {
            let path = self.file(*end, "key").display().to_string();
            let csr = held.request(&self.key(*end)?).map_err(|source| RenewalError::Sign { path, source })?;
            csrs.push((*end, csr));
        }
        let Identity { tenant, site, poller } = &self.identity;
        let request = RenewalRequest { poller: format!("{tenant}/{site}/{poller}"), csrs };
        let path = self.settings.folder.join("tls/hub-root.crt");
        let roots = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let roots = roots.map_err(|source| RenewalError::Pem { path: path.display().to_string(), source })?;
        let desk =
            DeskClient::new(&self.settings.urls, roots, self.settings.proxy.as_deref()).map_err(RenewalError::Ask)?;
        desk.post(RENEW_PATH, &request, &|why| info!("renewing certificates: {why}")).await.map_err(RenewalError::Ask)
    }

    /// Whether what was answered is for the keys that are here, and nothing else.
    fn check(&self, answer: &EnrolmentAnswer, due: &[(DeviceEnd, Held)]) -> Result<(), RenewalError> {
        let mut known: Vec<String> = TRUSTED.map(str::to_owned).to_vec();
        for (end, _) in due {
            let path = format!("{}.crt", end.path(&self.identity.poller));
            let file = answer.files.iter().find(|file| file.path == path);
            let file = file.ok_or_else(|| RenewalError::Answer(format!("{path} is missing")))?;
            crate::enroll::check_certificate(&file.text, &public_key(&self.key(*end)?))
                .map_err(|problem| RenewalError::Answer(format!("{path}: {problem}")))?;
            known.push(path);
        }
        match answer.files.iter().find(|file| !known.contains(&file.path)) {
            Some(stranger) => Err(RenewalError::Answer(format!("{:?} was not asked for", stranger.path))),
            None => Ok(()),
        }
    }

    fn place(&self, answer: &EnrolmentAnswer, is_meant: impl Fn(&str) -> bool) -> Result<(), RenewalError> {
        let folder = SiteFolder::at(&self.settings.folder, &self.identity.poller).map_err(RenewalError::Folder)?;
        for file in answer.files.iter().filter(|file| is_meant(&file.path)) {
            folder.put(&file.path, file.text.as_bytes(), PUBLIC).map_err(RenewalError::Folder)?;
        }
        Ok(())
    }
}

fn public_key(key: &KeyPair) -> Vec<u8> {
    use rcgen::PublicKeyData;
    key.subject_public_key_info()
}
