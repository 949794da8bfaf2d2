//! The answer to a server: a user of the account that was decided on, for as long as the certificate is good and some
//! hours at most, or a refusal.

use bulkhead_claims::{
    AuthorizationRequestBody, AuthorizationResponseBody, Claims, SealingError, SealingKey, SignError, Signer,
    SigningKey, UserBody, encode,
};

use crate::decide::Admission;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("sign an answer")]
    Sign(#[source] SignError),
    #[error("seal an answer")]
    Seal(#[source] SealingError),
}

/// How long an admission lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub most_s: i64,
    /// What is taken off at random, so that those who came together do not all come back together.
    pub spread_s: i64,
}

impl Session {
    /// Until when, unix seconds; `chance` is 0 to 1.
    #[must_use]
    pub fn until(self, not_after: i64, now_s: i64, chance: f64) -> i64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "hours in seconds")]
        let off = (self.spread_s as f64 * chance) as i64;
        not_after.min(now_s + self.most_s - off)
    }
}

/// What answers are signed and sealed with.
#[derive(Debug)]
pub struct Answering {
    pub xkey: SealingKey,
    /// A signing key of the sentinel's account, which the server asks about.
    pub signer: SigningKey,
    pub sentinel_account: String,
}

/// A user token for whom a server asked about, signed by the role's key.
///
/// # Errors
/// When the key does not sign.
pub fn user_token(
    admission: &Admission,
    signer: &dyn Signer,
    user_key: &str,
    (now_s, until): (i64, i64),
) -> Result<String, AnswerError> {
    let tags = admission.site.iter().map(|site| format!("site:{site}")).collect();
    let body = UserBody::scoped(admission.account.to_string(), tags);
    let mut claims = Claims::new(user_key.to_owned(), admission.name.clone(), now_s, body);
    claims.exp = Some(until);
    encode(&mut claims, signer).map_err(AnswerError::Sign)
}

impl Answering {
    /// The sealed answer to `request`: a user token, or what the server may log and tell.
    ///
    /// # Errors
    /// When it cannot be signed or sealed.
    pub fn answer(
        &self,
        request: &AuthorizationRequestBody,
        server_xkey: &str,
        decided: Result<String, &str>,
        now_s: i64,
    ) -> Result<Vec<u8>, AnswerError> {
        let mut body =
            AuthorizationResponseBody { issuer_account: self.sentinel_account.clone(), ..Default::default() };
        match decided {
            Ok(token) => body.jwt = token,
            Err(why) => why.clone_into(&mut body.error),
        }
        let mut claims = Claims::new(request.user_nkey.clone(), String::new(), now_s, body);
        claims.aud = Some(request.server_id.id.clone());
        let token = encode(&mut claims, &self.signer).map_err(AnswerError::Sign)?;
        self.xkey.seal(token.as_bytes(), server_xkey).map_err(AnswerError::Seal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admission_ends_with_the_certificate_or_after_some_hours_less_chance() {
        let session = Session { most_s: 1_000, spread_s: 100 };
        assert_eq!(session.until(i64::MAX, 50, 0.0), 1_050);
        assert_eq!(session.until(i64::MAX, 50, 1.0), 950);
        assert_eq!(session.until(500, 50, 0.5), 500);
    }
}
