//! The process that answers devices which enrol: HTTPS with a certificate of the server root, one request at a time, every
//! answer written down before it is given. It holds what provisioning holds: guard its machine like an authority.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use bulkhead_bus::gate::{ENROLMENT_DESK, decision_subject};
use bulkhead_bus::payload::{Decision, DecisionConnection};
use bulkhead_identity::{
    ENROL_PATH, EnrolmentAnswer, EnrolmentClaims, EnrolmentRefusal, EnrolmentRequest, REQUEST_BYTES_MOST,
};
use bulkhead_runtime::{Bus, Chain, Headers, Repeats, Stop, now_ms, server_config};
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{Refusal, Refused, TokenSigner};
use crate::certificates::{CertificateError, CertificateFiles, needs_renewal};
use crate::provisioning_lock::ProvisioningLock;
use crate::tenancy::{NotEnrolled, Tenancy, TenancyError, enrolment_address};

/// Requests that wait for their turn; the next one is told to come again.
const WAITING_MOST: usize = 64;
/// For another command to end; the device asks again.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const RECORD_LIMIT: Duration = Duration::from_secs(3);
const RENEW_EVERY: Duration = Duration::from_secs(3_600);
const END_LIMIT: Duration = Duration::from_secs(5);
/// The outcome of a decision that gave certificates.
const ENROLLED: &str = "enrolled";
/// What is told whoever comes when it cannot be done now.
const NOT_NOW: &str = "not_now";

/// Why the desk does not run.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error("platform")]
    Tenancy(#[source] TenancyError),
    #[error("key of tokens")]
    Enrolment(#[source] super::EnrolmentError),
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

/// Answers devices.
pub struct Desk {
    home: PathBuf,
    signer: TokenSigner,
    /// To AUTH, where decisions are kept; made when it is needed.
    gate: tokio::sync::Mutex<Option<Bus>>,
    /// One request changes the platform at a time.
    turn: tokio::sync::Mutex<()>,
    waiting: Semaphore,
    repeats: Mutex<Repeats>,
}

/// What the desk shows and how it is found.
struct Identity {
    files: CertificateFiles,
    hosts: Vec<String>,
}

impl Identity {
    fn new(tenancy: &Tenancy) -> Result<Self, DeskError> {
        let urls = &tenancy.settings.enrolment_urls;
        if urls.is_empty() {
            return Err(DeskError::NoUrl(tenancy.platform.layout.platform_file().display().to_string()));
        }
        let hosts = urls.iter().filter_map(|url| enrolment_address(url)).map(|(host, _)| host).collect();
        Ok(Self { files: CertificateFiles::named(&tenancy.platform.layout.enrolment_desk(), "desk"), hosts })
    }

    fn issue(&self, tenancy: &Tenancy) -> Result<(), DeskError> {
        let issued = tenancy.platform.authority.issue_desk(&self.hosts, &self.files, tenancy.platform.now);
        issued.map(drop).map_err(DeskError::Certificate)
    }

    fn config(&self) -> Result<Arc<rustls::ServerConfig>, DeskError> {
        server_config(&self.files.cert_file, &self.files.key_file).map(Arc::new).map_err(DeskError::Tls)
    }

    /// Takes a new certificate when the old one has lived two thirds of its life. Connections go on.
    async fn keep_fresh(&self, home: PathBuf, tls: RustlsConfig) {
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        loop {
            ticks.tick().await;
            let renewed = || -> Result<bool, DeskError> {
                let tenancy = Tenancy::open(home.clone()).map_err(DeskError::Tenancy)?;
                if !needs_renewal(&self.files.cert_file, tenancy.platform.now).map_err(DeskError::Certificate)? {
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
    fn open(home: PathBuf, tenancy: &Tenancy) -> Result<Self, DeskError> {
        let platform = &tenancy.platform;
        let domain = platform.authority.trust_domain().clone();
        let signer = TokenSigner::ensure(&platform.layout, domain).map_err(DeskError::Enrolment)?;
        Ok(Self {
            home,
            signer,
            gate: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            waiting: Semaphore::new(WAITING_MOST),
            repeats: Mutex::default(),
        })
    }

    /// Serves until `stop`; `ready` is called when devices may come.
    ///
    /// # Errors
    /// When it cannot listen, or the platform is not fit for it.
    pub async fn serve(home: PathBuf, listen: SocketAddr, stop: Stop, ready: impl FnOnce()) -> Result<(), DeskError> {
        let tenancy = Tenancy::open(home.clone()).map_err(DeskError::Tenancy)?;
        let identity = Identity::new(&tenancy)?;
        identity.issue(&tenancy)?;
        let desk = Arc::new(Self::open(home.clone(), &tenancy)?);
        let tls = RustlsConfig::from_config(identity.config()?);
        let failed = |source| DeskError::Listen { address: listen, source };
        let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let router = Router::new()
            .route(ENROL_PATH, post(enrol))
            .route("/livez", get(async || "alive\n"))
            .layer(DefaultBodyLimit::max(REQUEST_BYTES_MOST))
            .with_state(desk);
        let handle = Handle::new();
        let server = axum_server::from_tcp_rustls(listener, tls.clone()).map_err(DeskError::Serve)?;
        let served = server
            .handle(handle.clone())
            .http1_only()
            .serve(router.into_make_service_with_connect_info::<SocketAddr>());
        ready();
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
        }
    }

    /// Answers a device, after what it is answered is written down.
    async fn answer(&self, body: &[u8], host: &str) -> Result<EnrolmentAnswer, NotEnrolled> {
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(TenancyError::Invalid("too many devices wait: come again".to_owned()).into());
        };
        let _turn = self.turn.lock().await;
        let mut known = None;
        let decided = self.decide(body, host, &mut known).await;
        let (outcome, refused) = match &decided {
            Ok(_) => (ENROLLED, None),
            Err(NotEnrolled::Refused(refused)) => (refused.refusal.code(), Some(refused)),
            Err(NotEnrolled::Failed(_)) => return decided,
        };
        self.record(outcome, refused, known.as_ref(), host).await?;
        decided
    }

    async fn decide(
        &self,
        body: &[u8],
        host: &str,
        known: &mut Option<EnrolmentClaims>,
    ) -> Result<EnrolmentAnswer, NotEnrolled> {
        let request: EnrolmentRequest = serde_json::from_slice(body)
            .map_err(|error| Refused::new(Refusal::Unreadable, format!("the request cannot be read: {error}")))?;
        let claims = self.signer.verify(&request.token).map_err(Refused::from)?;
        *known = Some(claims.clone());
        let tenancy = Tenancy::open(self.home.clone())?;
        let home = self.home.clone();
        let lock = tokio::task::spawn_blocking(move || ProvisioningLock::take(&home, LOCK_LIMIT)).await;
        let lock = lock.map_err(|error| TenancyError::Invalid(format!("take the lock: {error}")))?;
        let _lock = lock.map_err(TenancyError::Lock)?;
        let database = tenancy.connect_database().await?;
        tenancy.enrol(database.as_ref(), &claims, &request, host).await
    }

    /// Writes a decision down where those of the gatekeepers are.
    async fn record(
        &self,
        outcome: &str,
        refused: Option<&Refused>,
        claims: Option<&EnrolmentClaims>,
        host: &str,
    ) -> Result<(), TenancyError> {
        let mut repeats = 0;
        if refused.is_some() {
            let kind = format!("{outcome} {host}");
            let noted = self.repeats.lock().expect("no holder panics").note(&kind, Instant::now());
            let Some(left_out) = noted else { return Ok(()) };
            repeats = left_out;
        }
        let tenant = claims.and_then(|claims| claims.enrolee().ok()).map(|enrolee| enrolee.tenant.to_string());
        let decision = Decision {
            id: Uuid::new_v4().to_string(),
            at_ms: now_ms(),
            gatekeeper: ENROLMENT_DESK.to_owned(),
            outcome: outcome.to_owned(),
            detail: refused.map(|refused| refused.problem.clone()).unwrap_or_default(),
            actual: refused.and_then(|refused| refused.actual.clone()).or_else(|| tenant.clone()),
            expected: tenant,
            identity: claims.map(|claims| claims.sub.clone()),
            account: claims.map(|claims| claims.account.to_string()),
            repeats,
            connection: DecisionConnection {
                host: host.to_owned(),
                kind: "Enrolment".to_owned(),
                name: claims.map(|claims| claims.jti.clone()).unwrap_or_default(),
                ..DecisionConnection::default()
            },
            ..Decision::default()
        };
        info!(outcome, host, poller = decision.identity, detail = decision.detail, "enrolment");
        let text = serde_json::to_string(&decision).expect("a decision serializes");
        let mut gate = self.gate.lock().await;
        let bus = match gate.take().filter(Bus::is_connected) {
            Some(bus) => bus,
            None => {
                let tenancy = Tenancy::open(self.home.clone())?;
                tenancy.platform.connect_gate().await.map_err(TenancyError::Platform)?
            }
        };
        let stored = bus.store(&decision_subject(ENROLMENT_DESK), Headers::default(), text.into(), RECORD_LIMIT).await;
        *gate = Some(bus);
        stored.map(drop).map_err(TenancyError::NotTold)
    }
}

fn told(status: StatusCode, body: &impl Serialize) -> Response {
    let text = serde_json::to_string(body).expect("an answer serializes");
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn enrol(
    State(desk): State<Arc<Desk>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: bytes::Bytes,
) -> Response {
    match desk.answer(&body, &peer.ip().to_string()).await {
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
