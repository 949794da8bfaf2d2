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

    /// What is needed and not there now, in the order of the alphabet.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let needs = self.0.needs.lock().expect("no question panics");
        let mut missing: Vec<_> = needs.iter().filter(|need| !(need.is_there)()).map(|need| need.name).collect();
        missing.sort_unstable();
        missing
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    crate::metrics! {
        struct Sample("sample") {
            /// Things done.
            done: crate::Counter,
        }
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn check(address: SocketAddr, path: &str, status: &str, body: &str) {
        let answer = ask(address, path).await;
        let expected = format!("HTTP/1.0 {status}");
        assert!(answer.starts_with(&expected) && answer.ends_with(&format!("\r\n\r\n{body}")), "{path}: {answer}");
    }

    async fn serve(health: Health, stuck_after: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router(health, stuck_after)).await });
        address
    }

    fn health(parts: &[&'static str]) -> (Health, Sample) {
        let sample = Sample::default();
        (Health { readiness: Readiness::new(parts), loops: Loops::default(), page: sample.page.clone() }, sample)
    }

    #[tokio::test]
    async fn readiness_names_what_has_not_started_and_what_is_away() {
        let (health, _) = health(&["results", "queries"]);
        let address = serve(health.clone(), STUCK_AFTER).await;
        let not_ready = "503 Service Unavailable";
        check(address, "/readyz", not_ready, "not started yet: results, queries\n").await;
        health.readiness.mark("results");
        let (hub, database) = (Reached::default(), Reached::default());
        health.readiness.require_reached("hub", &hub);
        health.readiness.require_reached("database", &database);
        check(address, "/readyz", not_ready, "not started yet: queries\naway now: database, hub\n").await;
        health.readiness.mark("queries");
        hub.set(true);
        check(address, "/readyz", not_ready, "away now: database\n").await;
        database.set(true);
        check(address, "/readyz", "200 OK", "ready\n").await;
        hub.set(false);
        check(address, "/readyz", not_ready, "away now: hub\n").await;
        check(address, "/livez", "200 OK", "alive\n").await;
    }

    #[tokio::test]
    async fn a_loop_that_says_nothing_is_named_and_what_is_away_is_not() {
        let (health, _) = health(&["hub"]);
        let _quiet = health.loops.watch("quiet");
        health.readiness.require_reached("database", &Reached::default());
        check(serve(health.clone(), STUCK_AFTER).await, "/livez", "200 OK", "alive\n").await;
        let address = serve(health, Duration::ZERO).await;
        check(address, "/livez", "503 Service Unavailable", "stuck for 0 s: quiet\n").await;
    }

    #[tokio::test]
    async fn metrics_are_sent_as_what_they_are() {
        let (health, sample) = health(&[]);
        sample.done.inc_by(4);
        let answer = ask(serve(health, STUCK_AFTER).await, "/metrics").await;
        assert!(answer.contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{answer}");
        assert!(answer.ends_with(
            "\r\n\r\n# HELP sample_done Things done.\n# TYPE sample_done counter\nsample_done_total 4\n# EOF\n"
        ));
    }
}
