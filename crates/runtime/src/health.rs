//! `/livez`, `/readyz` and `/metrics` over HTTP, for whoever watches this process. What each answer means is in
//! docs/metrics.md. It takes nothing in and shows no name of a tenant.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::liveness::{Loops, STUCK_AFTER};
use crate::metrics::{CONTENT_TYPE, Page};
use crate::{Bus, Stop};

type Ask = Box<dyn Fn() -> bool + Send + Sync>;

/// Something that a process needs all the time, asked at every question.
struct Need {
    name: &'static str,
    is_there: Ask,
}

#[derive(Default)]
struct Inner {
    starting: Mutex<Vec<&'static str>>,
    needs: Mutex<Vec<Need>>,
}

/// Whether a process can do its work now: its parts have started once, and what they need is there. Clones share it.
#[derive(Clone)]
pub struct Readiness(Arc<Inner>);

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("waiting", &self.waiting()).field("missing", &self.missing()).finish()
    }
}

/// What was found at the last attempt to use something that a process needs. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Reached(Arc<AtomicBool>);

impl Reached {
    pub fn set(&self, is_reached: bool) {
        self.0.store(is_reached, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Readiness {
    /// The parts that must have started once.
    #[must_use]
    pub fn new(parts: &[&'static str]) -> Self {
        Self(Arc::new(Inner { starting: Mutex::new(parts.to_vec()), needs: Mutex::default() }))
    }

    fn starting(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.0.starting.lock().expect("no holder panics")
    }

    /// A part has started, for good.
    pub fn mark(&self, part: &'static str) {
        self.starting().retain(|waiting| *waiting != part);
    }

    /// From now on the process is ready only while this connection is up.
    pub fn require_connection(&self, name: &'static str, bus: &Bus) {
        let bus = bus.clone();
        self.require(name, move || bus.is_connected());
    }

    /// From now on the process is ready only while `reached` says so.
    pub fn require_reached(&self, name: &'static str, reached: &Reached) {
        let reached = reached.clone();
        self.require(name, move || reached.get());
    }

    fn require(&self, name: &'static str, is_there: impl Fn() -> bool + Send + Sync + 'static) {
        let need = Need { name, is_there: Box::new(is_there) };
        self.0.needs.lock().expect("no question panics").push(need);
    }

    /// What has not started yet.
    #[must_use]
    pub fn waiting(&self) -> Vec<&'static str> {
        self.starting().clone()
    }

    /// What is needed and not there now.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let needs = self.0.needs.lock().expect("no question panics");
        needs.iter().filter(|need| !(need.is_there)()).map(|need| need.name).collect()
    }
}

/// What the health listener shows.
#[derive(Debug, Clone)]
pub struct Health {
    pub readiness: Readiness,
    pub loops: Loops,
    pub page: Page,
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let (waiting, missing) = (health.readiness.waiting(), health.readiness.missing());
    let line = |what: &str, names: &[&str]| match names {
        [] => String::new(),
        names => format!("{what}: {}\n", names.join(", ")),
    };
    let lines = line("not started yet", &waiting) + &line("away now", &missing);
    if lines.is_empty() { (StatusCode::OK, "ready\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, lines) }
}

fn livez(loops: &Loops, limit: Duration) -> (StatusCode, String) {
    let stuck = loops.stuck(Instant::now(), limit);
    if stuck.is_empty() {
        return (StatusCode::OK, "alive\n".to_owned());
    }
    let lines = stuck.iter().map(|(name, silence)| format!("stuck for {} s: {name}\n", silence.as_secs()));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], health.page.to_text())
}

fn router(health: Health, stuck_after: Duration) -> Router {
    Router::new()
        .route("/livez", get(async move |State(health): State<Health>| livez(&health.loops, stuck_after)))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound; the message names it.
pub async fn serve_health(listen: SocketAddr, health: Health, stop: Stop) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("bind health listener {listen}"))?;
    let served = axum::serve(listener, router(health, STUCK_AFTER)).with_graceful_shutdown(stop.cancelled_owned());
    served.await.context("serve health")
}
