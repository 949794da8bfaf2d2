//! The process that answers devices which enrol: HTTPS with a certificate of the server root, one request at a time, every
//! answer written down before it is given. It holds what provisioning holds: guard its machine like an authority.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use bulkhead_bus::gate::{BarredItem, ENROLMENT_DESK, decision_subject};
use bulkhead_bus::payload::{Decision, DecisionConnection};
use bulkhead_identity::{
    ENROL_PATH, Enrolee, EnrolmentAnswer, EnrolmentClaims, EnrolmentRefusal, EnrolmentRequest, RENEW_PATH,
    REQUEST_BYTES_MOST, RenewalRequest,
};
use bulkhead_runtime::{Bus, Chain, Headers, Repeats, Stop, now_ms, server_config};
use hyper_util::rt::TokioTimer;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{BadToken, Refusal, Refused, TokenSigner, check_renewal};
use crate::certificates::{AuthorityName, CertificateError, CertificateFiles, TrustDomain, needs_renewal};
use crate::provisioning_lock::ProvisioningLock;
use crate::tenancy::{NotEnrolled, Tenancy, TenancyError, enrolment_address};
use crate::up::Layout;

/// Requests that wait for their turn; the next one is told to come again.
const WAITING_MOST: usize = 64;
/// For another command to end; the device asks again.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const RECORD_LIMIT: Duration = Duration::from_secs(3);
const RENEW_EVERY: Duration = Duration::from_secs(60);
/// For a client to say what it wants.
const READ_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(5);
/// The outcomes of decisions to give certificates.
const ENROLLED: &str = "enrolled";
const RENEWED: &str = "renewed";
/// The outcome for what gatekeepers had barred.
const REVOKED: &str = "revoked_for_good";
const NOT_REVOKED: &str = "not_revoked";
/// What is told whoever comes when it cannot be done now.
const NOT_NOW: &str = "not_now";

/// Why the desk does not run.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error("platform")]
    Tenancy(#[source] TenancyError),
    #[error(
        "nobody says where devices reach this desk: write enrolment_urls = [\"https://host:port\"] into {0}; the names in it \
         are those of the desk's certificate"
    )]
    NoUrl(String),
    #[error("certificate of the desk")]
    Certificate(#[source] CertificateError),
    #[error("use the desk's certificate")]
    Tls(#[source] bulkhead_runtime::TlsError),
    #[error("listen at {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("serve")]
    Serve(#[source] std::io::Error),
}

/// Answers devices, and revokes what gatekeepers have barred.
pub struct Desk {
    home: PathBuf,
    domain: TrustDomain,
    /// To AUTH, where decisions are kept; made when it is needed.
    gate: tokio::sync::Mutex<Option<Bus>>,
    /// One request changes the platform at a time.
    turn: tokio::sync::Mutex<()>,
    waiting: Semaphore,
    repeats: Mutex<Repeats>,
}

/// What a device comes for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Enrol,
    Renew,
}

/// Who a device says it is: by a token that was verified, or by its own word.
#[derive(Debug, Default)]
struct Asked {
    /// Whether a token of ours, or a key with a current certificate, says it.
    is_proved: bool,
    tenant: Option<String>,
    poller: Option<String>,
    account: Option<String>,
    /// The token's id.
    token: String,
}

/// What the desk shows and how it is found.
struct Identity {
    files: CertificateFiles,
    hosts: Vec<String>,
    /// The server root's certificate when the desk's own was issued.
    root: Mutex<Option<CertificateDer<'static>>>,
}

impl Identity {
    fn new(tenancy: &Tenancy) -> Result<Self, DeskError> {
        let urls = &tenancy.settings.enrolment_urls;
        if urls.is_empty() {
            return Err(DeskError::NoUrl(tenancy.platform.layout.platform_file().display().to_string()));
        }
        let hosts = urls.iter().filter_map(|url| enrolment_address(url)).map(|(host, _)| host).collect();
        let files = CertificateFiles::named(&tenancy.platform.layout.enrolment_desk(), "desk");
        Ok(Self { files, hosts, root: Mutex::default() })
    }

    fn issue(&self, tenancy: &Tenancy) -> Result<(), DeskError> {
        let authority = &tenancy.platform.authority;
        let root = authority.signing_certificate(&AuthorityName::ServerRoot).map_err(DeskError::Certificate)?;
        let issued = authority.issue_desk(&self.hosts, &self.files, tenancy.platform.now);
        issued.map_err(DeskError::Certificate)?;
        *self.root.lock().expect("no holder panics") = Some(root);
        Ok(())
    }

    /// Whether it has lived two thirds of its life, or another root signs now.
    fn is_due(&self, tenancy: &Tenancy) -> Result<bool, CertificateError> {
        let root = tenancy.platform.authority.signing_certificate(&AuthorityName::ServerRoot)?;
        let is_old = self.root.lock().expect("no holder panics").as_ref() != Some(&root);
        Ok(is_old || needs_renewal(&self.files.cert_file, tenancy.platform.now)?)
    }

    fn config(&self) -> Result<Arc<rustls::ServerConfig>, DeskError> {
        server_config(&self.files.cert_file, &self.files.key_file).map(Arc::new).map_err(DeskError::Tls)
    }

    /// Takes a new certificate when that is due. Connections go on.
    async fn keep_fresh(&self, home: PathBuf, tls: RustlsConfig) {
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        loop {
            ticks.tick().await;
            let renewed = || -> Result<bool, DeskError> {
                let tenancy = Tenancy::open(home.clone()).map_err(DeskError::Tenancy)?;
                if !self.is_due(&tenancy).map_err(DeskError::Certificate)? {
                    return Ok(false);
                }
                self.issue(&tenancy)?;
                tls.reload_from_config(self.config()?);
                Ok(true)
            };
            match renewed() {
                Ok(true) => info!("the desk's certificate is renewed"),
                Ok(false) => {}
                Err(error) => error!(error = %Chain(&error), "the desk's certificate is not renewed"),
            }
        }
    }
}

impl Desk {
    fn new(home: PathBuf, domain: TrustDomain) -> Self {
        Self {
            home,
            domain,
            gate: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            waiting: Semaphore::new(WAITING_MOST),
            repeats: Mutex::default(),
        }
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// When it cannot listen, or the platform is not fit for it.
    pub async fn serve(home: PathBuf, listen: SocketAddr, stop: Stop) -> Result<(), DeskError> {
        let tenancy = Tenancy::open(home.clone()).map_err(DeskError::Tenancy)?;
        let identity = Identity::new(&tenancy)?;
        identity.issue(&tenancy)?;
        let desk = Arc::new(Self::new(home.clone(), tenancy.platform.authority.trust_domain().clone()));
        let tls = RustlsConfig::from_config(identity.config()?);
        let failed = |source| DeskError::Listen { address: listen, source };
        let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let router = Router::new()
            .route(ENROL_PATH, post(enrol))
            .route(RENEW_PATH, post(renew))
            .route("/livez", get(async || "alive\n"))
            .with_state(Arc::clone(&desk));
        let handle = Handle::new();
        let server = axum_server::from_tcp_rustls(listener, tls.clone()).map_err(DeskError::Serve)?;
        let mut server = server.handle(handle.clone()).http1_only().first_request_timeout(READ_LIMIT);
        server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(READ_LIMIT).keep_alive(false);
        let served = server.serve(router.into_make_service_with_connect_info::<SocketAddr>());
        info!(%listen, "devices may enrol");
        let ends = async {
            stop.cancelled().await;
            handle.graceful_shutdown(Some(END_LIMIT));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = served => ended.map_err(DeskError::Serve),
            () = ends => Ok(()),
            () = identity.keep_fresh(home, tls) => Ok(()),
            () = desk.follow_barred() => Ok(()),
        }
    }

    /// Answers a device. What is decided is written down before anything is issued.
    async fn answer(&self, wish: Wish, body: &[u8], host: &str) -> Result<EnrolmentAnswer, NotEnrolled> {
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(TenancyError::Invalid("too many devices wait: come again".to_owned()).into());
        };
        let _turn = self.turn.lock().await;
        let mut asked = Asked::default();
        let decided = match wish {
            Wish::Enrol => self.enrol(body, host, &mut asked).await,
            Wish::Renew => self.renew(body, host, &mut asked).await,
        };
        if let Err(NotEnrolled::Refused(refused)) = &decided {
            self.record(refused.refusal.code(), Some(refused), &asked, host).await?;
        }
        decided
    }

    /// The platform as it is now, which nobody else changes meanwhile.
    async fn open_alone(&self) -> Result<(Tenancy, ProvisioningLock), TenancyError> {
        let home = self.home.clone();
        let lock = tokio::task::spawn_blocking(move || ProvisioningLock::take(&home, LOCK_LIMIT)).await;
        let lock = lock.map_err(|error| TenancyError::Invalid(format!("take the lock: {error}")))?;
        let lock = lock.map_err(TenancyError::Lock)?;
        Ok((Tenancy::open(self.home.clone())?, lock))
    }

    /// What a token says, if it is one of this platform that is still good. The key is read each time: deleting it is how every
    /// token is made worthless.
    fn verified(&self, token: &str) -> Result<EnrolmentClaims, NotEnrolled> {
        let signer = TokenSigner::find(&Layout::new(self.home.clone()), self.domain.clone());
        let verified = match signer.map_err(TenancyError::Enrolment)? {
            Some(signer) => signer.verify(token),
            None => Err(BadToken::Foreign),
        };
        Ok(verified.map_err(Refused::from)?)
    }

    async fn enrol(&self, body: &[u8], host: &str, asked: &mut Asked) -> Result<EnrolmentAnswer, NotEnrolled> {
        let request: EnrolmentRequest = read(body)?;
        let claims = self.verified(&request.token)?;
        *asked = Asked {
            is_proved: true,
            tenant: claims.enrolee().ok().map(|enrolee| enrolee.tenant.to_string()),
            poller: Some(claims.sub.clone()),
            account: Some(claims.account.to_string()),
            token: claims.jti.clone(),
        };
        let (tenancy, _lock) = self.open_alone().await?;
        let granted = tenancy.check_enrolment(&claims, &request)?;
        let links = tenancy.links()?;
        let database = links.database().await?;
        self.record(ENROLLED, None, asked, host).await?;
        Ok(tenancy.enrol(database, granted, host).await?)
    }

    async fn renew(&self, body: &[u8], host: &str, asked: &mut Asked) -> Result<EnrolmentAnswer, NotEnrolled> {
        let request: RenewalRequest = read(body)?;
        let enrolee = Enrolee::parse(&request.poller).ok();
        asked.poller = enrolee.as_ref().map(ToString::to_string);
        asked.tenant = enrolee.as_ref().map(|enrolee| enrolee.tenant.to_string());
        // Before anybody is kept waiting: it has the keys that it shows.
        if let Some(enrolee) = &enrolee {
            check_renewal(&request, enrolee, &self.domain).map_err(Refused::from)?;
        }
        let (tenancy, _lock) = self.open_alone().await?;
        let granted = tenancy.check_renewal(&request)?;
        asked.is_proved = true;
        self.record(RENEWED, None, asked, host).await?;
        Ok(tenancy.renew_device(granted, host)?)
    }

    /// Revokes what a gatekeeper has barred, and writes that down.
    pub(super) async fn revoke_barred(&self, what: &BarredItem) -> Result<(), TenancyError> {
        let _turn = self.turn.lock().await;
        let revoked = {
            let (tenancy, _lock) = self.open_alone().await?;
            tenancy.revoke_barred(&tenancy.links()?, what).await?
        };
        let decision = match revoked {
            // An earlier process has said it.
            Some(revoked) if !revoked.is_new => return Ok(()),
            Some(revoked) => Decision {
                outcome: REVOKED.to_owned(),
                detail: "it was shown where it does not belong: revoked for good".to_owned(),
                expected: Some(revoked.account),
                identity: Some(revoked.identity),
                ..desk_decision()
            },
            None => Decision {
                outcome: NOT_REVOKED.to_owned(),
                detail:
                    "it is in no tenant's book, and barred for a day only: somebody may have the key of an authority \
                         (bulkhead ca rotate), or the home is older than it is"
                        .to_owned(),
                actual: Some(what.to_string()),
                ..desk_decision()
            },
        };
        let (outcome, account, identity, detail) =
            (&decision.outcome, &decision.expected, &decision.identity, &decision.detail);
        warn!(%what, outcome, account, identity, detail, "what gatekeepers have barred");
        self.store(&decision).await
    }

    /// A connection to AUTH of its own, for listening.
    pub(super) async fn connected_to_gate(&self) -> Result<Bus, TenancyError> {
        Tenancy::open(self.home.clone())?.platform.connect_gate().await.map_err(TenancyError::Platform)
    }

    /// Writes a decision about a device down where those of the gatekeepers are.
    async fn record(
        &self,
        outcome: &str,
        refused: Option<&Refused>,
        asked: &Asked,
        host: &str,
    ) -> Result<(), TenancyError> {
        let mut repeats = 0;
        if refused.is_some() {
            // Whoever needs no token to come has no name to be told apart by: addresses are easily had.
            let kind = if asked.is_proved { format!("{outcome} {host}") } else { outcome.to_owned() };
            let noted = self.repeats.lock().expect("no holder panics").note(&kind, Instant::now());
            let Some(left_out) = noted else { return Ok(()) };
            repeats = left_out;
        }
        let decision = Decision {
            outcome: outcome.to_owned(),
            detail: refused
                .map(|refused| refused.detail.as_ref().unwrap_or(&refused.problem).clone())
                .unwrap_or_default(),
            actual: refused.and_then(|refused| refused.actual.clone()).or_else(|| asked.tenant.clone()),
            expected: asked.tenant.clone().filter(|_| asked.is_proved),
            identity: asked.poller.clone(),
            account: asked.account.clone(),
            repeats,
            connection: DecisionConnection {
                host: host.to_owned(),
                kind: "Enrolment".to_owned(),
                name: asked.token.clone(),
                ..DecisionConnection::default()
            },
            ..desk_decision()
        };
        info!(outcome, host, poller = decision.identity, detail = decision.detail, "enrolment");
        self.store(&decision).await
    }

    async fn store(&self, decision: &Decision) -> Result<(), TenancyError> {
        let text = serde_json::to_string(decision).expect("a decision serializes");
        let mut gate = self.gate.lock().await;
        let bus = match gate.take().filter(Bus::is_connected) {
            Some(bus) => bus,
            None => self.connected_to_gate().await?,
        };
        let stored = bus.store(&decision_subject(ENROLMENT_DESK), Headers::default(), text.into(), RECORD_LIMIT).await;
        *gate = Some(bus);
        stored.map(drop).map_err(TenancyError::NotTold)
    }
}

/// What all decisions of this process have in common.
fn desk_decision() -> Decision {
    Decision {
        id: Uuid::new_v4().to_string(),
        at_ms: now_ms(),
        gatekeeper: ENROLMENT_DESK.to_owned(),
        ..Decision::default()
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    let unreadable = |error| Refused::new(Refusal::Unreadable, format!("the request cannot be read: {error}"));
    serde_json::from_slice(body).map_err(unreadable)
}

fn told(status: StatusCode, body: &impl Serialize) -> Response {
    let text = serde_json::to_string(body).expect("an answer serializes");
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

type Peer = ConnectInfo<SocketAddr>;

async fn enrol(State(desk): State<Arc<Desk>>, ConnectInfo(peer): Peer, body: Body) -> Response {
    answered(desk, Wish::Enrol, peer, body).await
}

async fn renew(State(desk): State<Arc<Desk>>, ConnectInfo(peer): Peer, body: Body) -> Response {
    answered(desk, Wish::Renew, peer, body).await
}

async fn answered(desk: Arc<Desk>, wish: Wish, peer: SocketAddr, body: Body) -> Response {
    let body = match tokio::time::timeout(READ_LIMIT, to_bytes(body, REQUEST_BYTES_MOST)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    // It goes on to its end when the device goes away in the middle.
    let answering = tokio::spawn(async move { desk.answer(wish, &body, &peer.ip().to_string()).await });
    let Ok(answered) = answering.await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    match answered {
        Ok(answer) => told(StatusCode::OK, &answer),
        Err(NotEnrolled::Refused(refused)) => told(StatusCode::FORBIDDEN, &refused.told()),
        Err(NotEnrolled::Failed(error)) => {
            // What is wrong here is for the operator, and not for whoever asks.
            warn!(error = %Chain(&error), "an enrolment cannot be answered now");
            let problem = "it cannot be done now: say it again in a while, with the same folder".to_owned();
            told(StatusCode::SERVICE_UNAVAILABLE, &EnrolmentRefusal { refused: NOT_NOW.to_owned(), problem })
        }
    }
}
