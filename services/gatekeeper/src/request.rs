//! A server's question: opened, and believed only when everything about it is as a server of ours would send it.

use bulkhead_bus::gate::CALLOUT_AUDIENCE;
use bulkhead_claims::{AuthorizationRequestBody, Claims, DecodeError, KeyKind, SealingError, SealingKey, decode};

/// What a server's clock may differ from ours by.
const SKEW_MOST_S: i64 = 60;

/// Why a question is not one of a server.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("it is not sealed")]
    NotSealed,
    #[error("it cannot be opened")]
    Open(#[source] SealingError),
    #[error("it is not text")]
    Text,
    #[error("it is no question")]
    Token(#[source] DecodeError),
    #[error("it is signed by {issuer}, and says that {server} asks")]
    Issuer { issuer: String, server: String },
    #[error("it is addressed to {0:?}")]
    Audience(String),
    #[error("it is about somebody who knocked at {0:?}, not at the sentinel's account")]
    Account(String),
    #[error("it is about {0:?}, which is no user's key")]
    UserKey(String),
}

/// Who is asked: a key that opens, and the account that everybody knocks at.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub xkey: &'a SealingKey,
    pub sentinel_account: &'a str,
}

/// Opens a question that was sealed by the server whose X25519 key is `server_xkey`.
///
/// # Errors
/// When it is not as a server would send it. Whether that server is ours is another question.
pub fn read_request(
    body: &[u8],
    server_xkey: Option<&str>,
    asked: Asked<'_>,
) -> Result<Claims<AuthorizationRequestBody>, RequestError> {
    let server_xkey = server_xkey.ok_or(RequestError::NotSealed)?;
    let text = asked.xkey.open(body, server_xkey).map_err(RequestError::Open)?;
    let token = std::str::from_utf8(&text).map_err(|_| RequestError::Text)?;
    let claims: Claims<AuthorizationRequestBody> = decode(token).map_err(RequestError::Token)?;
    let server = &claims.nats.server_id.id;
    if KeyKind::of_public(&claims.iss) != Some(KeyKind::Server) || claims.iss != *server {
        return Err(RequestError::Issuer { issuer: claims.iss, server: server.chars().take(60).collect() });
    }
    if claims.aud.as_deref() != Some(CALLOUT_AUDIENCE) {
        let found = claims.aud.unwrap_or_default();
        return Err(RequestError::Audience(found.chars().take(60).collect()));
    }
    if claims.sub != asked.sentinel_account {
        return Err(RequestError::Account(claims.sub.chars().take(60).collect()));
    }
    if KeyKind::of_public(&claims.nats.user_nkey) != Some(KeyKind::User) {
        return Err(RequestError::UserKey(claims.nats.user_nkey.chars().take(60).collect()));
    }
    Ok(claims)
}

/// Why a question of a server is not decided on, if the clocks are too far apart: it is old, and somebody repeats it, or a
/// clock is wrong. It is answered, so that the connection does not wait in vain.
#[must_use]
pub fn clock_trouble(claims: &Claims<AuthorizationRequestBody>, now_s: i64) -> Option<String> {
    let is_over = claims.exp.is_some_and(|end| end + SKEW_MOST_S < now_s);
    let is_apart = (claims.iat - now_s).abs() > SKEW_MOST_S;
    let trouble = || format!("asked at unix second {}, and here it is {now_s}: compare the clocks", claims.iat);
    (is_over || is_apart).then(trouble)
}

#[cfg(test)]
mod tests {
    use bulkhead_claims::{SigningKey, encode};

    use super::*;

    struct Place {
        server: SigningKey,
        server_xkey: SealingKey,
        own: SealingKey,
        sentinel: String,
    }

    impl Place {
        fn new() -> Self {
            let (server_xkey, own) = (SealingKey::generate(), SealingKey::generate());
            let sentinel = SigningKey::generate(KeyKind::Account).public().to_owned();
            Self { server: SigningKey::generate(KeyKind::Server), server_xkey, own, sentinel }
        }

        fn asked(&self) -> Asked<'_> {
            Asked { xkey: &self.own, sentinel_account: &self.sentinel }
        }

        fn claims(&self) -> Claims<AuthorizationRequestBody> {
            let mut body = AuthorizationRequestBody::default();
            body.server_id.id = self.server.public().to_owned();
            body.user_nkey = SigningKey::generate(KeyKind::User).public().to_owned();
            let mut claims = Claims::new(self.sentinel.clone(), String::new(), 1_000, body);
            claims.aud = Some(CALLOUT_AUDIENCE.to_owned());
            claims.exp = Some(1_002);
            claims
        }

        fn read(&self, mut claims: Claims<AuthorizationRequestBody>, signer: &SigningKey) -> Result<(), RequestError> {
            let token = encode(&mut claims, signer).unwrap();
            let sealed = self.server_xkey.seal(token.as_bytes(), self.own.public()).unwrap();
            read_request(&sealed, Some(self.server_xkey.public()), self.asked()).map(drop)
        }

        fn changed(&self, change: impl FnOnce(&mut Claims<AuthorizationRequestBody>)) -> RequestError {
            let mut claims = self.claims();
            change(&mut claims);
            self.read(claims, &self.server).unwrap_err()
        }
    }

    #[test]
    fn only_what_the_server_itself_signed_and_sealed_is_its_question() {
        let place = Place::new();
        place.read(place.claims(), &place.server).unwrap();
        let other = SigningKey::generate(KeyKind::Server);
        assert!(matches!(place.read(place.claims(), &other), Err(RequestError::Issuer { .. })));
        let token = encode(&mut place.claims(), &place.server).unwrap();
        let key = Some(place.server_xkey.public());
        assert!(matches!(read_request(token.as_bytes(), None, place.asked()), Err(RequestError::NotSealed)));
        assert!(matches!(read_request(token.as_bytes(), key, place.asked()), Err(RequestError::Open(_))));
        let elsewhere = place.server_xkey.seal(token.as_bytes(), SealingKey::generate().public()).unwrap();
        assert!(matches!(read_request(&elsewhere, key, place.asked()), Err(RequestError::Open(_))));
        let garbage = place.server_xkey.seal(b"\xff\xff", place.own.public()).unwrap();
        assert!(matches!(read_request(&garbage, key, place.asked()), Err(RequestError::Text)));
    }

    #[test]
    fn audience_user_and_time_are_as_they_have_to_be() {
        let place = Place::new();
        assert!(matches!(place.changed(|claims| claims.aud = None), RequestError::Audience(_)));
        assert!(matches!(place.changed(|claims| claims.aud = Some("x".to_owned())), RequestError::Audience(_)));
        let account = SigningKey::generate(KeyKind::Account).public().to_owned();
        let elsewhere = account.clone();
        assert!(matches!(place.changed(|claims| claims.sub = elsewhere), RequestError::Account(_)));
        assert!(matches!(place.changed(|claims| claims.nats.user_nkey = account), RequestError::UserKey(_)));
        assert!(matches!(place.changed(|claims| claims.nats.user_nkey.clear()), RequestError::UserKey(_)));
        let at = |asked, exp| clock_trouble(&Claims { iat: asked, exp, ..place.claims() }, 1_001);
        for asked in [0, 900, 1_100, i64::from(i32::MAX)] {
            assert!(at(asked, None).is_some(), "{asked}");
        }
        assert!(at(1_000, Some(10)).is_some());
        assert_eq!(at(1_000, Some(1_002)), None);
    }
}
