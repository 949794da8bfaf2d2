//! Asking the desk, over TLS that trusts the root in the token and nobody else, through a proxy where there is one.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_identity::{ENROL_PATH, EnrolmentAnswer, EnrolmentClaims, EnrolmentRefusal, EnrolmentRequest, TokenError};
use bulkhead_runtime::{Backoff, Chain};
use reqwest::redirect::Policy;
use reqwest::{Client, Proxy, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::Instant;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long it is tried again while nobody answers.
const PATIENCE: Duration = Duration::from_secs(90);
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("root in the token")]
    Root(#[source] TokenError),
    #[error("use the root in the token")]
    Tls(#[source] rustls::Error),
    #[error("proxy {proxy:?} cannot be used: write http://host:port")]
    Proxy { proxy: String, source: reqwest::Error },
    #[error("make a client")]
    Client(#[source] reqwest::Error),
    #[error("{urls} did not answer for {}: {last}; say it again, the same token and folder go on", minutes(.limit))]
    Away { urls: String, limit: Duration, last: String },
    #[error("refused ({code}): {problem}")]
    Refused { code: String, problem: String },
    #[error("{url} answered {status} with something that is no answer: is it the enrolment desk?")]
    Strange { url: String, status: StatusCode },
}

fn minutes(limit: &Duration) -> String {
    format!("{} s", limit.as_secs())
}

fn client(claims: &EnrolmentClaims, proxy: Option<&str>) -> Result<Client, AskError> {
    let mut roots = RootCertStore::empty();
    roots.add(claims.root_certificate().map_err(AskError::Root)?).map_err(AskError::Tls)?;
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
        let bad = |source| AskError::Proxy { proxy: proxy.to_owned(), source };
        client = client.proxy(Proxy::https(proxy).map_err(bad)?);
    }
    client.build().map_err(AskError::Client)
}

/// What one attempt came to.
enum Attempt {
    Answered(EnrolmentAnswer),
    /// Nobody answered, or not now.
    Again(String),
}

async fn attempt(client: &Client, url: &str, request: &str) -> Result<Attempt, AskError> {
    let url = format!("{url}{ENROL_PATH}");
    let sent = client.post(&url).header("content-type", "application/json").body(request.to_owned()).send().await;
    let answer = match sent {
        Ok(answer) => answer,
        Err(error) => return Ok(Attempt::Again(Chain(&error).to_string())),
    };
    let status = answer.status();
    let body = match answer.bytes().await {
        Ok(body) => body,
        Err(error) => return Ok(Attempt::Again(Chain(&error).to_string())),
    };
    let strange = || AskError::Strange { url: url.clone(), status };
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

/// Asks each URL in turn until one answers; `tell` hears why it is tried again.
///
/// # Errors
/// When it is refused, or nobody answers for a minute and a half.
///
/// # Panics
/// Never: a request serializes.
pub(super) async fn ask(
    claims: &EnrolmentClaims,
    request: &EnrolmentRequest,
    proxy: Option<&str>,
    tell: &dyn Fn(&str),
) -> Result<EnrolmentAnswer, AskError> {
    let client = client(claims, proxy)?;
    let text = serde_json::to_string(request).expect("a request serializes");
    let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
    let end = Instant::now() + PATIENCE;
    for url in claims.urls.iter().cycle() {
        match attempt(&client, url, &text).await? {
            Attempt::Answered(answer) => return Ok(answer),
            Attempt::Again(last) if Instant::now() >= end => {
                return Err(AskError::Away { urls: claims.urls.join(", "), limit: PATIENCE, last });
            }
            Attempt::Again(why) => tell(&format!("trying again: {why}")),
        }
        backoff.pause().await;
    }
    Err(AskError::Root(TokenError::Url))
}
