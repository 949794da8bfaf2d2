//! Asking the desk, over TLS that trusts one root and nobody else, through a proxy where there is one.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_identity::{EnrolmentAnswer, EnrolmentRefusal};
use bulkhead_runtime::{Backoff, Chain};
use reqwest::redirect::Policy;
use reqwest::{Client, Proxy, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tokio::time::Instant;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long it is tried again while nobody answers.
const PATIENCE: Duration = Duration::from_secs(90);
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("use the platform's root")]
    Tls(#[source] rustls::Error),
    #[error("proxy {proxy:?} cannot be used ({why}): write http://host:port")]
    Proxy { proxy: String, why: String },
    #[error("make a client")]
    Client(#[source] reqwest::Error),
    #[error("{urls} did not answer{} for {}: {last}; say it again, the same token and folder go on", through(.proxy), minutes(.limit))]
    Away { urls: String, proxy: Option<String>, limit: Duration, last: String },
    #[error(
        "who answers at {url} is not who is expected ({why}): ask your operator for a new token, and for what stands between"
    )]
    Untrusted { url: String, why: String },
    #[error("refused ({code}): {problem}")]
    Refused { code: String, problem: String },
    #[error("{url} answered {status} with something that is no answer: is it the enrolment desk?")]
    Strange { url: String, status: StatusCode },
}

fn minutes(limit: &Duration) -> String {
    format!("{} s", limit.as_secs())
}

fn through(proxy: &Option<String>) -> String {
    proxy.as_ref().map_or_else(String::new, |proxy| format!(" through proxy {proxy}"))
}

/// A host that is named without its scheme would be looked for, and in vain.
fn proxy_of(text: &str) -> Result<Proxy, AskError> {
    let bad = |why: String| AskError::Proxy { proxy: text.chars().take(100).collect(), why };
    let url = reqwest::Url::parse(text).map_err(|error| bad(error.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err(bad(format!("{:?} is no scheme of a proxy", url.scheme())));
    }
    Proxy::https(url).map_err(|error| bad(Chain(&error).to_string()))
}

/// Who answers devices, as one of them reaches it.
pub(crate) struct DeskClient {
    client: Client,
    urls: Vec<String>,
    proxy: Option<String>,
}

/// What one attempt came to.
enum Attempt {
    Answered(EnrolmentAnswer),
    /// Nobody answered, or not now.
    Again(String),
}

async fn attempt(client: &Client, url: &str, request: &str) -> Result<Attempt, AskError> {
    let sent = client.post(url).header("content-type", "application/json").body(request.to_owned()).send().await;
    let answer = match sent {
        Ok(answer) => answer,
        Err(error) => {
            let why = Chain(&error).to_string();
            // Waiting does not cure that.
            let is_untrusted = why.contains("invalid peer certificate");
            let untrusted = || AskError::Untrusted { url: url.to_owned(), why: why.clone() };
            return if is_untrusted { Err(untrusted()) } else { Ok(Attempt::Again(why)) };
        }
    };
    let status = answer.status();
    let body = match answer.bytes().await {
        Ok(body) => body,
        Err(error) => return Ok(Attempt::Again(Chain(&error).to_string())),
    };
    let strange = || AskError::Strange { url: url.to_owned(), status };
    if status.is_success() {
        return serde_json::from_slice(&body).map(Attempt::Answered).map_err(|_| strange());
    }
    if status.is_server_error() {
        let told = serde_json::from_slice::<EnrolmentRefusal>(&body).map(|told| told.problem);
        return Ok(Attempt::Again(told.unwrap_or_else(|_| format!("{url} answered {status}"))));
    }
    let told: EnrolmentRefusal = serde_json::from_slice(&body).map_err(|_| strange())?;
    Err(AskError::Refused { code: told.refused, problem: told.problem })
}

impl DeskClient {
    /// # Errors
    /// When a root or the proxy cannot be used.
    pub(crate) fn new(
        urls: &[String],
        trusted: Vec<CertificateDer<'static>>,
        proxy: Option<&str>,
    ) -> Result<Self, AskError> {
        let mut roots = RootCertStore::empty();
        trusted.into_iter().try_for_each(|root| roots.add(root)).map_err(AskError::Tls)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(AskError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT);
        if let Some(proxy) = proxy {
            client = client.proxy(proxy_of(proxy)?);
        }
        let client = client.build().map_err(AskError::Client)?;
        Ok(Self { client, urls: urls.to_vec(), proxy: proxy.map(str::to_owned) })
    }

    /// Asks each URL in turn until one answers; `tell` hears why it is tried again.
    ///
    /// # Errors
    /// When it is refused, or nobody answers for a minute and a half.
    ///
    /// # Panics
    /// Never: a request serializes.
    pub(crate) async fn post(
        &self,
        path: &str,
        request: &impl Serialize,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<EnrolmentAnswer, AskError> {
        let text = serde_json::to_string(request).expect("a request serializes");
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        let end = Instant::now() + PATIENCE;
        let mut last = "there is no URL".to_owned();
        while !self.urls.is_empty() {
            // Somebody else at one address does not keep a device from the next one.
            let mut stranger = None;
            let mut is_over = true;
            for url in &self.urls {
                match attempt(&self.client, &format!("{url}{path}"), &text).await {
                    Ok(Attempt::Answered(answer)) => return Ok(answer),
                    Ok(Attempt::Again(why)) => (last, is_over) = (why, false),
                    Err(error @ (AskError::Untrusted { .. } | AskError::Strange { .. })) => stranger = Some(error),
                    Err(error) => return Err(error),
                }
            }
            match stranger {
                Some(error) if is_over => return Err(error),
                _ if Instant::now() >= end => break,
                _ => {}
            }
            tell(&format!("trying again: {last}"));
            backoff.pause().await;
        }
        Err(AskError::Away { urls: self.urls.join(", "), proxy: self.proxy.clone(), limit: PATIENCE, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_without_its_scheme_is_refused_before_anything_is_tried() {
        for bad in ["proxy:3128", "proxy.example.com:3128", "ftp://proxy:21", "http://", "no proxy", ""] {
            assert!(matches!(proxy_of(bad), Err(AskError::Proxy { .. })), "{bad:?}");
        }
        assert!(proxy_of("http://proxy.example.com:3128").is_ok() && proxy_of("https://proxy:3128").is_ok());
    }
}
