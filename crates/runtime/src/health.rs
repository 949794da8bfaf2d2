//! `/livez` and `/readyz` over HTTP. Ready is a one-way latch per part: what is not ready is named.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::Stop;

/// The parts of a process that must have started once.
#[derive(Debug, Clone)]
pub struct Readiness {
    waiting: Arc<Mutex<Vec<&'static str>>>,
}

impl Readiness {
    #[must_use]
    pub fn new(parts: &[&'static str]) -> Self {
        Self { waiting: Arc::new(Mutex::new(parts.to_vec())) }
    }

    pub fn mark(&self, part: &'static str) {
        self.waiting.lock().expect("no holder panics").retain(|waiting| *waiting != part);
    }

    /// What has not started yet; empty when ready.
    #[must_use]
    pub fn waiting(&self) -> Vec<&'static str> {
        self.waiting.lock().expect("no holder panics").clone()
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let waiting = readiness.waiting();
    if waiting.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", waiting.join(", ")))
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound; the message names it.
pub async fn serve_health(listen: SocketAddr, readiness: Readiness, stop: Stop) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("bind health listener {listen}"))?;
    let router =
        Router::new().route("/livez", get(|| async { "alive\n" })).route("/readyz", get(readyz)).with_state(readiness);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await.context("serve health")
}
