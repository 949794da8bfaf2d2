//! What is run: a check, under which assignment, and its secrets, which are opened when they are used and not before.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bulkhead_bus::CheckName;
use bulkhead_bus::payload::{Measured, Outcome, Reason};
use bulkhead_checks::{Check, Detail, Prober, Secrets};
use bulkhead_claims::SealingKey;
use bulkhead_runtime::now_ms;
use tracing::warn;
use zeroize::Zeroizing;

use crate::keep::{KeepError, put_private, read_private};
use crate::schedule::Term;

const KEY_FILE: &str = "sealing.key";

/// One check to be run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) check: Check,
    /// 0 of a check of the poller's own settings.
    pub(crate) generation: i64,
    /// By name, sealed for this poller.
    pub(crate) secrets: BTreeMap<String, String>,
}

/// What becomes of the checks that are run.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put(Term<Arc<Job>>),
    End { check: CheckName, until_ms: i64 },
}

/// Opens what is sealed for this poller. The key never leaves the state folder.
#[derive(Debug)]
pub(crate) struct Vault(SealingKey);

impl Vault {
    /// Reads the key of `folder`, or makes it, once.
    ///
    /// # Errors
    /// When the file cannot be read or written, can be read by others, or holds no such key.
    pub(crate) fn open(folder: &Path) -> Result<Self, KeepError> {
        let path = folder.join(KEY_FILE);
        if let Some(seed) = read_private(&path)? {
            let key =
                SealingKey::from_seed(&seed).map_err(|_| KeepError::NoKey { path: path.display().to_string() })?;
            return Ok(Self(key));
        }
        let key = SealingKey::generate();
        let seed = key.seed().map_err(|_| KeepError::NoKey { path: path.display().to_string() })?;
        put_private(&path, seed.as_bytes())?;
        Ok(Self(key))
    }

    pub(crate) fn public(&self) -> &str {
        self.0.public()
    }

    fn unseal(&self, name: &str, sealed: &str) -> Option<Zeroizing<String>> {
        self.0.open_secret(name, sealed).ok()
    }
}

impl Job {
    /// Of the poller's own settings.
    pub(crate) fn local(check: Check) -> Self {
        Self { check, generation: 0, secrets: BTreeMap::new() }
    }

    /// The secrets that a run needs, as far as there are copies that open. The check says what is missing.
    fn open_secrets(&self, vault: &Vault) -> Secrets {
        let mut opened = Secrets::new();
        for name in self.check.spec.secrets() {
            let Some(sealed) = self.secrets.get(name) else { continue };
            match vault.unseal(name, sealed) {
                Some(secret) => drop(opened.insert(name.to_owned(), secret)),
                None => {
                    warn!(check = %self.check.name, secret = name, "a copy of secret {name} is not for this poller")
                }
            }
        }
        opened
    }

    pub(crate) async fn measure(&self, prober: &Prober, vault: &Vault, slot_ms: i64) -> Measured {
        let secrets = self.open_secrets(vault);
        let measured = prober.measure(&self.check, slot_ms, &secrets).await;
        Measured { generation: self.generation, ..measured }
    }

    /// The result of a slot in which nothing was measured.
    pub(crate) fn without_measurement(&self, slot_ms: i64, outcome: Outcome, reason: Reason) -> Measured {
        Measured {
            check: self.check.name.clone(),
            kind: self.check.spec.kind(),
            slot_ms,
            started_ms: now_ms(),
            outcome,
            reason: Some(reason),
            latency_us: None,
            generation: self.generation,
            island: false,
            detail: Detail::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::Probe;
    use bulkhead_checks::{CheckSpec, Rules};
    use bulkhead_claims::seal_secret;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn the_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Vault::open(folder.path()).unwrap().public().to_owned();
        assert_eq!(Vault::open(folder.path()).unwrap().public(), first);
        let path = folder.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Vault::open(folder.path()).unwrap_err().to_string().contains("0644"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "rubbish").unwrap();
        assert!(Vault::open(folder.path()).is_err());
    }

    #[tokio::test]
    async fn a_secret_is_opened_for_its_run_and_one_without_a_copy_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = Probe {
            name: "web".parse().unwrap(),
            kind: "http".to_owned(),
            target: format!("http://{}/", listener.local_addr().unwrap()),
            interval_s: 10,
            timeout_ms: 2_000,
            retries: 0,
            options: BTreeMap::from([(
                "headers".to_owned(),
                serde_json::json!({"authorization": {"secret": "token"}}),
            )]),
        };
        let job = |secrets| Job { check: CheckSpec::of_probe(&probe).unwrap(), generation: 3, secrets };
        let prober = Prober::open(Rules::default());
        let stranger = SealingKey::generate();
        for secrets in [
            BTreeMap::new(),
            BTreeMap::from([("token".to_owned(), seal_secret("token", "Bearer x", stranger.public()).unwrap())]),
        ] {
            let result = job(secrets).measure(&prober, &vault, 0).await;
            assert_eq!((result.outcome, result.reason), (Outcome::Error, Some(Reason::SecretMissing)));
        }
        let copy = seal_secret("token", "Bearer s3cret", vault.public()).unwrap();
        let job = job(BTreeMap::from([("token".to_owned(), copy)]));
        assert!(!format!("{job:?}").contains("s3cret"));
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 2_048];
            let size = stream.read(&mut asked).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&asked[..size]).into_owned()
        });
        let result = job.measure(&prober, &vault, 0).await;
        assert_eq!((result.outcome, result.generation), (Outcome::Ok, 3));
        assert!(heard.await.unwrap().contains("authorization: Bearer s3cret\r\n"));
        assert!(!serde_json::to_string(&result).unwrap().contains("s3cret"));
    }
}
