//! Credentials files: a user's token and seed between lines of dashes.

use zeroize::Zeroizing;

use crate::key::{KeyKind, SeedError, SigningKey};
use crate::signer::SignError;
use crate::token::{Claims, DecodeError, decode};
use crate::user::UserBody;

/// Why a text is no credentials file. Never shows a seed.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("no user token between lines of dashes: a credentials file has one, then a seed")]
    NoToken,
    #[error("no seed behind the token: a credentials file has both, write it again from the token and its seed")]
    NoSeed,
    #[error("read the token of a credentials file")]
    Token(#[source] DecodeError),
    #[error("read the seed of a credentials file")]
    Seed(#[source] SeedError),
    #[error("the seed is that of {seed}, the token is about {token}: they belong to different users")]
    Mismatch { seed: String, token: String },
}

/// What a credentials file holds.
#[derive(Debug)]
pub struct Credentials {
    pub token: String,
    pub claims: Claims<UserBody>,
    pub key: SigningKey,
}

/// The text of a credentials file, as the Go library writes it.
///
/// # Errors
/// When the key holds no private half.
pub fn credentials_text(token: &str, key: &SigningKey) -> Result<String, SignError> {
    let seed = key.seed()?;
    Ok(format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\
         NKEYs are sensitive and should be treated as secrets.\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n\n\
         *************************************************************\n",
        seed.as_str()
    ))
}

/// Reads a credentials file as tolerantly as servers' clients do: any text on the lines of dashes, three dashes or
/// more, either end of line. Whatever else is in the file is not looked at.
///
/// # Errors
/// When there is no token or no seed, one is not readable, or they are not of the same user.
pub fn parse_credentials(text: &str) -> Result<Credentials, CredentialsError> {
    let mut fenced = fenced_lines(text);
    let token = fenced.next().ok_or(CredentialsError::NoToken)?;
    let seed = Zeroizing::new(fenced.next().ok_or(CredentialsError::NoSeed)?.to_owned());
    let claims = decode::<UserBody>(token).map_err(CredentialsError::Token)?;
    let key = SigningKey::from_seed(&seed, KeyKind::User).map_err(CredentialsError::Seed)?;
    if key.public() != claims.sub {
        return Err(CredentialsError::Mismatch { seed: key.public().to_owned(), token: claims.sub });
    }
    Ok(Credentials { token: token.to_owned(), claims, key })
}

/// The single lines that stand between two lines of dashes.
fn fenced_lines(text: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let mut found = Vec::new();
    let mut index = 0;
    while let Some([above, line, below]) = lines.get(index..index + 3) {
        if opens_fence(above) && is_content(line) && closes_fence(below) {
            found.push(*line);
            index += 3;
        } else {
            index += 1;
        }
    }
    found.into_iter()
}

/// Text may stand before the dashes that open, as a byte order mark does.
fn opens_fence(line: &str) -> bool {
    line.ends_with("---") && line.find("---").is_some_and(|start| line.len() - start >= 6)
}

fn closes_fence(line: &str) -> bool {
    line.len() >= 6 && line.starts_with("---") && line.ends_with("---")
}

fn is_content(line: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'=');
    // A line of dashes only is a fence, not a token.
    !line.is_empty() && line.bytes().all(is_allowed) && line.bytes().any(|byte| byte != b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::encode;

    fn made() -> (String, String) {
        let (account, user) = (SigningKey::generate(KeyKind::Account), SigningKey::generate(KeyKind::User));
        let body = UserBody::scoped(account.public().to_owned(), vec![]);
        let token = encode(&mut Claims::new(user.public().to_owned(), "u".to_owned(), 1, body), &account).unwrap();
        let text = credentials_text(&token, &user).unwrap();
        (token, text)
    }

    #[test]
    fn files_are_read_however_they_are_ruled() {
        let (token, text) = made();
        let read = |text: &str| parse_credentials(text).map(|found| found.token).map_err(|error| error.to_string());
        assert_eq!(read(&text), Ok(token.clone()));
        assert_eq!(read(&text.replace('\n', "\r\n")), Ok(token.clone()));
        assert_eq!(
            read(&text.replace("------END", "---END").replace("-----BEGIN", "--------BEGIN")),
            Ok(token.clone())
        );
        assert_eq!(read(&format!("\u{feff}\n# note\n{text}")), Ok(token.clone()));
        let cut = text.split("------END USER").next().unwrap().trim_end();
        assert!(read(cut).unwrap_err().contains("no seed"), "an unfinished file");
        assert!(read(&token).unwrap_err().contains("no user token"));
        let (_, other) = made();
        let seed = other.split("SEED-----\n").nth(1).unwrap();
        let mixed = format!("{}SEED-----\n{seed}", text.split("SEED-----\n").next().unwrap());
        assert!(read(&mixed).unwrap_err().contains("different users"));
    }
}
