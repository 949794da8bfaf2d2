//! The words between a device that enrols and the desk that answers it (docs/enrolment.md).
//!
//! Reading a token here proves nothing: it tells a device where to go. Whether it is good is for the desk to say.

use bulkhead_bus::{AccountKey, NameError, PollerName, SiteName, TenantSlug};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{ClientIdentity, TrustDomain};

/// Where a device sends its request.
pub const ENROL_PATH: &str = "/v1/enrol";
/// Where a device asks for certificates that go on where its own end.
pub const RENEW_PATH: &str = "/v1/renew";
/// Who makes tokens.
pub const TOKEN_ISSUER: &str = "bulkhead-enrolment";
/// No request is longer, in bytes.
pub const REQUEST_BYTES_MOST: usize = 32 * 1024;
/// What a poller signs with its batch key, before the token.
const PROOF: &str = "bulkhead-enrolment:";

/// What an enrolment token says: an EdDSA JWT of [`TOKEN_ISSUER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentClaims {
    pub iss: String,
    /// The trust domain.
    pub aud: String,
    /// Such as `acme-corp/oslo/p1`.
    pub sub: String,
    /// Unique; the desk remembers whether it was used.
    pub jti: String,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub exp: i64,
    /// The tenant's account, so that a slug that is given away again is somebody else.
    pub account: AccountKey,
    /// Where the desk is: `https://host:port`.
    pub urls: Vec<String>,
    /// The certificate of the root by which the desk is known, DER in Base64.
    pub root: String,
}

/// Why a text is no enrolment token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is no enrolment token: copy the whole of what `bulkhead poller add` has printed")]
    Form,
    #[error("it is a token of {0:?}, and not for enrolment")]
    Issuer(String),
    #[error("it is not for a poller")]
    Poller(#[source] NameError),
    #[error("trust domain {0:?} in it is not valid")]
    Domain(String),
    #[error("it holds no certificate of the platform's root")]
    Root,
    #[error("it says nowhere to go, or not over https")]
    Url,
}

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolee {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
}

impl Enrolee {
    /// # Errors
    /// When it is not three good names.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.split('/').collect();
        let [tenant, site, poller] = parts.as_slice() else { return Err(TokenError::Form) };
        Ok(Self {
            tenant: tenant.parse().map_err(TokenError::Poller)?,
            site: site.parse().map_err(TokenError::Poller)?,
            poller: poller.parse().map_err(TokenError::Poller)?,
        })
    }

    /// What each of the device's certificates speaks for.
    #[must_use]
    pub fn identity(&self, end: DeviceEnd) -> ClientIdentity {
        let (tenant, site) = (self.tenant.clone(), self.site.clone());
        match end {
            DeviceEnd::Leaf => ClientIdentity::Leaf { tenant, site },
            DeviceEnd::Forwarder => ClientIdentity::Forwarder { tenant, site },
            DeviceEnd::Poller => ClientIdentity::Poller { tenant, site, poller: self.poller.clone() },
        }
    }
}

impl std::fmt::Display for Enrolee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.site, self.poller)
    }
}

/// What a device has TLS keys for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceEnd {
    /// Towards the hub.
    Leaf,
    /// Towards the leaf, for the whole site.
    Forwarder,
    /// Towards the leaf.
    Poller,
}

impl DeviceEnd {
    pub const ALL: [Self; 3] = [Self::Leaf, Self::Forwarder, Self::Poller];

    /// Where its certificate and key are in the site's folder, without their endings.
    #[must_use]
    pub fn path(self, poller: &PollerName) -> String {
        match self {
            Self::Leaf => "tls/leaf".to_owned(),
            Self::Forwarder => format!("pollers/{poller}/forwarder"),
            Self::Poller => format!("pollers/{poller}/poller"),
        }
    }
}

impl EnrolmentClaims {
    /// Reads a token without asking whether it is good.
    ///
    /// # Errors
    /// When it is none, or lacks what a device needs.
    pub fn read(token: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = token.trim().split('.').collect();
        let [_, claims, _] = parts.as_slice() else { return Err(TokenError::Form) };
        let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).map_err(|_| TokenError::Form)?;
        let claims: Self = serde_json::from_slice(&claims).map_err(|_| TokenError::Form)?;
        if claims.iss != TOKEN_ISSUER {
            return Err(TokenError::Issuer(claims.iss.chars().take(60).collect()));
        }
        claims.enrolee()?;
        claims.domain()?;
        claims.root_certificate()?;
        if claims.urls.is_empty() || claims.urls.iter().any(|url| !url.starts_with("https://")) {
            return Err(TokenError::Url);
        }
        Ok(claims)
    }

    /// # Errors
    /// When its names are not good ones.
    pub fn enrolee(&self) -> Result<Enrolee, TokenError> {
        Enrolee::parse(&self.sub)
    }

    /// # Errors
    /// When it is none.
    pub fn domain(&self) -> Result<TrustDomain, TokenError> {
        self.aud.parse().map_err(|_| TokenError::Domain(self.aud.chars().take(60).collect()))
    }

    /// # Errors
    /// When it is not Base64.
    pub fn root_certificate(&self) -> Result<CertificateDer<'static>, TokenError> {
        let bytes = BASE64.decode(self.root.as_bytes()).map_err(|_| TokenError::Root)?;
        if bytes.is_empty() { Err(TokenError::Root) } else { Ok(CertificateDer::from(bytes)) }
    }
}

/// What a device asks for. Every private half stays on the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    pub token: String,
    /// A certificate request, PEM, for each of [`DeviceEnd::ALL`].
    pub leaf_csr: String,
    pub forwarder_csr: String,
    pub poller_csr: String,
    /// The public half of the Ed25519 key that signs batches, as an nkey (`U…`).
    pub batch_key: String,
    /// Its signature over [`proof`], Base64.
    pub batch_key_proof: String,
    /// The public half of the X25519 key for what only this poller may read, as an nkey (`X…`).
    pub sealing_key: String,
    /// Pollers of the same site that the device has in the same folder.
    #[serde(default)]
    pub beside: Vec<PollerName>,
}

impl EnrolmentRequest {
    #[must_use]
    pub fn csr(&self, end: DeviceEnd) -> &str {
        match end {
            DeviceEnd::Leaf => &self.leaf_csr,
            DeviceEnd::Forwarder => &self.forwarder_csr,
            DeviceEnd::Poller => &self.poller_csr,
        }
    }
}

/// What a device asks for whose certificates come to their end. It shows that it has their keys by signing requests with them;
/// nothing else of it is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalRequest {
    /// Such as `acme-corp/oslo/p1`.
    pub poller: String,
    /// Certificate requests, PEM, for those that are due.
    pub csrs: Vec<(DeviceEnd, String)>,
}

/// What a batch key signs, to show that the device has its private half.
#[must_use]
pub fn proof(token: &str) -> Vec<u8> {
    format!("{PROOF}{token}").into_bytes()
}

/// A file that the device gets; none of them is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentFile {
    /// Relative to the site's folder, with `/`.
    pub path: String,
    pub text: String,
}

/// What the desk gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentAnswer {
    pub poller: String,
    /// Unix seconds at which the first of its certificates ends.
    pub ends_at: i64,
    pub files: Vec<EnrolmentFile>,
}

/// Why the desk gives nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentRefusal {
    /// A code of the closed list in docs/wire.md.
    pub refused: String,
    /// In a sentence, with the way out.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> EnrolmentClaims {
        EnrolmentClaims {
            iss: TOKEN_ISSUER.to_owned(),
            aud: "example".to_owned(),
            sub: "acme-corp/oslo/p1".to_owned(),
            jti: "1".to_owned(),
            iat: 1,
            exp: 2,
            account: bulkhead_claims::SigningKey::generate(bulkhead_claims::KeyKind::Account).public().parse().unwrap(),
            urls: vec!["https://127.0.0.1:1".to_owned()],
            root: BASE64.encode(b"root"),
        }
    }

    fn token(claims: &EnrolmentClaims) -> String {
        format!("h.{}.s", BASE64URL_NOPAD.encode(&serde_json::to_vec(claims).unwrap()))
    }

    #[test]
    fn what_a_token_says_is_read_and_what_is_none_is_told() {
        let good = claims();
        assert_eq!(EnrolmentClaims::read(&format!(" {}\n", token(&good))), Ok(good));
    }

    #[test]
    fn a_text_that_is_no_token_is_refused_with_the_rule() {
        for text in ["", "a.b", "a.b.c", "a.b.c.d", "\u{fc}.\u{fc}.\u{fc}"] {
            assert_eq!(EnrolmentClaims::read(text), Err(TokenError::Form), "{text}");
        }
        for (change, expected) in [
            ((|c| c.iss = "other".to_owned()) as fn(&mut EnrolmentClaims), TokenError::Issuer("other".to_owned())),
            (|c| c.sub = "acme-corp/oslo".to_owned(), TokenError::Form),
            (|c| c.aud = "A".to_owned(), TokenError::Domain("A".to_owned())),
            (|c| c.root = "-".to_owned(), TokenError::Root),
            (|c| c.root = String::new(), TokenError::Root),
            (|c| c.urls.clear(), TokenError::Url),
            (|c| c.urls = vec!["http://a".to_owned()], TokenError::Url),
        ] {
            let mut bad = claims();
            change(&mut bad);
            assert_eq!(EnrolmentClaims::read(&token(&bad)), Err(expected));
        }
        let mut bad = claims();
        bad.sub = "acme-corp/../p1".to_owned();
        assert!(matches!(EnrolmentClaims::read(&token(&bad)), Err(TokenError::Poller(_))));
    }
}
