//! Enrolment tokens: EdDSA JWTs, signed with a key of their own that opens nothing else.

use bulkhead_identity::{EnrolmentClaims, TOKEN_ISSUER, TrustDomain};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};

use super::EnrolmentError;
use crate::files::{read_secret, write_secret};
use crate::up::Layout;

/// Signs tokens and knows its own.
pub struct TokenSigner {
    signs: EncodingKey,
    verifies: DecodingKey,
    domain: TrustDomain,
}

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadToken {
    /// It is none, or not ours.
    Foreign,
    Expired,
}

impl TokenSigner {
    /// The key of a home; it is made when there is none. Whoever deletes it makes every open token worthless.
    ///
    /// # Errors
    /// When it is open to others, is damaged, or cannot be written.
    pub fn ensure(layout: &Layout, domain: TrustDomain) -> Result<Self, EnrolmentError> {
        if let Some(known) = Self::find(layout, domain.clone())? {
            return Ok(known);
        }
        let path = layout.enrolment_key();
        let failed = |source| EnrolmentError::Key { path: path.display().to_string(), source };
        let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(failed)?;
        let text = zeroize::Zeroizing::new(pair.serialize_pem());
        write_secret(&path, text.as_bytes()).map_err(EnrolmentError::File)?;
        Ok(Self::of(&pair, domain))
    }

    /// The key of a home, if there is one.
    ///
    /// # Errors
    /// When it is open to others, or is damaged.
    pub fn find(layout: &Layout, domain: TrustDomain) -> Result<Option<Self>, EnrolmentError> {
        let path = layout.enrolment_key();
        if !path.exists() {
            return Ok(None);
        }
        let text = zeroize::Zeroizing::new(read_secret(&path).map_err(EnrolmentError::File)?);
        let damaged = |source| EnrolmentError::Key { path: path.display().to_string(), source };
        Ok(Some(Self::of(&KeyPair::from_pem(&text).map_err(damaged)?, domain)))
    }

    fn of(pair: &KeyPair, domain: TrustDomain) -> Self {
        Self {
            signs: EncodingKey::from_ed_der(&pair.serialize_der()),
            verifies: DecodingKey::from_ed_der(pair.der_bytes()),
            domain,
        }
    }

    /// # Errors
    /// When the key cannot sign.
    pub fn sign(&self, claims: &EnrolmentClaims) -> Result<String, EnrolmentError> {
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &self.signs).map_err(EnrolmentError::Sign)
    }

    /// What a token says, when it is ours and has not expired.
    ///
    /// # Errors
    /// When it is not.
    pub fn verify(&self, token: &str) -> Result<EnrolmentClaims, BadToken> {
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_audience(&[self.domain.as_str()]);
        rules.set_issuer(&[TOKEN_ISSUER]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.leeway = 0;
        let decoded = jsonwebtoken::decode::<EnrolmentClaims>(token, &self.verifies, &rules);
        decoded.map(|decoded| decoded.claims).map_err(|error| {
            let has_expired = matches!(error.kind(), ErrorKind::ExpiredSignature);
            if has_expired { BadToken::Expired } else { BadToken::Foreign }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_claims::{KeyKind, SigningKey};
    use data_encoding::BASE64URL_NOPAD;
    use time::OffsetDateTime;

    fn signer() -> (tempfile::TempDir, Layout, TokenSigner) {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout::new(home.path().to_owned());
        let signer = TokenSigner::ensure(&layout, TrustDomain::default()).unwrap();
        (home, layout, signer)
    }

    fn claims(ends_in: i64) -> EnrolmentClaims {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        EnrolmentClaims {
            iss: TOKEN_ISSUER.to_owned(),
            aud: TrustDomain::default().to_string(),
            sub: "acme-corp/oslo/p1".to_owned(),
            jti: "1".to_owned(),
            iat: now,
            exp: now + ends_in,
            account: SigningKey::generate(KeyKind::Account).public().parse().unwrap(),
            urls: vec!["https://127.0.0.1:8443".to_owned()],
            root: "AAAA".to_owned(),
        }
    }

    #[test]
    fn only_its_own_tokens_are_good_and_only_as_long_as_they_say() {
        let (_home, layout, signer) = signer();
        let good = claims(60);
        let token = signer.sign(&good).unwrap();
        assert_eq!(signer.verify(&token), Ok(good.clone()));
        let again = TokenSigner::ensure(&layout, TrustDomain::default()).unwrap();
        assert_eq!(again.verify(&token), Ok(good), "the key is kept");
        assert_eq!(signer.verify(&signer.sign(&claims(-1)).unwrap()), Err(BadToken::Expired));
        let (_other_home, _, other) = super::tests::signer();
        assert_eq!(other.verify(&token), Err(BadToken::Foreign));
        let elsewhere = TokenSigner::ensure(&layout, "elsewhere".parse().unwrap()).unwrap();
        assert_eq!(elsewhere.verify(&token), Err(BadToken::Foreign), "another trust domain");
        let otherwise = EnrolmentClaims { iss: "other".to_owned(), ..claims(60) };
        assert_eq!(signer.verify(&signer.sign(&otherwise).unwrap()), Err(BadToken::Foreign));
    }

    #[test]
    fn a_changed_token_and_another_algorithm_are_refused() {
        let (_home, _, signer) = signer();
        let token = signer.sign(&claims(60)).unwrap();
        let [_, body, signature] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        let unsigned = BASE64URL_NOPAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
        let keyed = BASE64URL_NOPAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        let changed = claims(600);
        let changed = BASE64URL_NOPAD.encode(&serde_json::to_vec(&changed).unwrap());
        let head = token.split('.').next().unwrap();
        for bad in [
            String::new(),
            format!("{unsigned}.{body}."),
            format!("{keyed}.{body}.{signature}"),
            format!("{head}.{changed}.{signature}"),
            token[..token.len() - 1].to_owned(),
        ] {
            assert_eq!(signer.verify(&bad), Err(BadToken::Foreign), "{bad}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let (_home, layout, _) = signer();
        std::fs::set_permissions(layout.enrolment_key(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(TokenSigner::ensure(&layout, TrustDomain::default()).is_err());
    }
}
