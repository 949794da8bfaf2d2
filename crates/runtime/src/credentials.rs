//! A NATS credentials file: a user JWT and the seed that proves it (facts: accounts-and-nsc, creds file).

use std::fmt;
use std::path::Path;

use nkeys::{KeyPair, KeyPairType};

/// Why a credentials file cannot be used. Never shows what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("read credentials file {path}")]
    Read { path: String, source: std::io::Error },
    #[error("credentials file {path} has no {part}: a credentials file has a NATS USER JWT and a USER NKEY SEED block")]
    Missing { path: String, part: &'static str },
    #[error("credentials file {path} has a seed that is not a user's")]
    Seed { path: String },
}

/// A user JWT and its key pair. Debug shows the public key only.
pub struct Credentials {
    pub jwt: String,
    pub key: KeyPair,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.key.public_key())
    }
}

/// The line after a `-----BEGIN <what>-----` line.
fn block<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("-----BEGIN") || !line.contains(what));
    lines.nth(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('-'))
}

impl Credentials {
    /// # Errors
    /// When the file cannot be read or is not a credentials file.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let shown = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| CredentialsError::Read { path: shown.clone(), source })?;
        let missing = |part| CredentialsError::Missing { path: shown.clone(), part };
        let jwt = block(&text, "NATS USER JWT").ok_or_else(|| missing("NATS USER JWT"))?;
        let seed = block(&text, "USER NKEY SEED").ok_or_else(|| missing("USER NKEY SEED"))?;
        let key = KeyPair::from_seed(seed).map_err(|_| CredentialsError::Seed { path: shown.clone() })?;
        // nkeys maps an unknown prefix to Operator, so the kind is checked here.
        if key.key_pair_type() != KeyPairType::User {
            return Err(CredentialsError::Seed { path: shown });
        }
        Ok(Self { jwt: jwt.to_owned(), key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let path = std::env::temp_dir().join(format!("bulkhead-creds-{}", KeyPair::new_user().public_key()));
        std::fs::write(&path, text).unwrap();
        let read = Credentials::read(&path);
        std::fs::remove_file(&path).unwrap();
        match read {
            Ok(credentials) => assert_eq!(credentials.jwt, expected),
            Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        }
    }

    #[test]
    fn truncated_and_foreign_files_are_named() {
        let user = KeyPair::new_user().seed().unwrap();
        let account = KeyPair::new_account().seed().unwrap();
        let file = |seed: &str| {
            format!(
                "-----BEGIN NATS USER JWT-----\r\na.b.c\r\n------END NATS USER JWT------\r\n\r\n\
                 -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
            )
        };
        check(&file(&user), "a.b.c");
        check(&file(&account), "not a user's");
        check(&file("SUrubbish"), "not a user's");
        check("", "has no NATS USER JWT");
        check(&file(&user)[..60], "has no USER NKEY SEED");
    }
}
