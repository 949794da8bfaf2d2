//! The client behind a [`crate::Bus`], and another one in its place when its task has ended.
//!
//! Admission is by credentials file and client certificate, both read anew at every reconnect, so that a renewed file
//! is used without a restart.
//!
//! A client heals lost connections by itself. Its task does not survive a message that makes it panic, such as one with a
//! carriage return in a header (async-nats 0.51), and a client without its task says that it is connected and does
//! nothing ever again: one sender would stop everybody whose messages come over the same connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, Weak};
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, ServerAddr, ServerError, jetstream};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::bus::{BusSettings, ConnectError, JETSTREAM_LIMIT};
use crate::credentials::Credentials;
use crate::tls::client_config;
use crate::{Backoff, Chain, Trouble};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A server that answers none of three is left for another one.
const PING_EVERY: Duration = Duration::from_secs(5);
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MOST: Duration = Duration::from_secs(2);

/// What changes with the connection, for everybody who waits for it.
#[derive(Debug, Clone)]
struct Signals {
    /// How often the connection was lost.
    lost: watch::Sender<u64>,
    /// Changes with each connection that is made.
    made: watch::Sender<u64>,
    /// What the server said when it last refused something.
    refused: watch::Sender<String>,
}

/// A client with its task.
#[derive(Debug)]
struct Current {
    client: Client,
    jetstream: jetstream::Context,
    /// Closed when the client's task has ended.
    alive: watch::Receiver<()>,
}

impl Current {
    fn is_alive(&self) -> bool {
        self.alive.has_changed().is_ok()
    }
}

/// The client of now. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    current: Arc<RwLock<Current>>,
    signals: Signals,
}

impl Link {
    pub(crate) async fn connect(settings: &BusSettings, name: &str) -> Result<Self, ConnectError> {
        let signals =
            Signals { lost: watch::Sender::new(0), made: watch::Sender::new(0), refused: watch::Sender::default() };
        let current = connect(settings, name, &signals).await?;
        let current = Arc::new(RwLock::new(current));
        let keeper = Keeper {
            current: Arc::downgrade(&current),
            settings: settings.clone(),
            name: name.to_owned(),
            signals: signals.clone(),
        };
        tokio::spawn(keeper.run());
        Ok(Self { current, signals })
    }

    pub(crate) fn client(&self) -> Client {
        self.current.read().expect("no holder panics").client.clone()
    }

    pub(crate) fn jetstream(&self) -> jetstream::Context {
        self.current.read().expect("no holder panics").jetstream.clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        let current = self.current.read().expect("no holder panics");
        // A client whose task has ended goes on saying what was true at the end.
        current.is_alive() && current.client.connection_state() == async_nats::connection::State::Connected
    }

    pub(crate) fn losses(&self) -> watch::Receiver<u64> {
        self.signals.lost.subscribe()
    }

    /// What the server says when it refuses something of this connection.
    pub(crate) fn refusals(&self) -> watch::Receiver<String> {
        self.signals.refused.subscribe()
    }

    pub(crate) fn made(&self) -> watch::Receiver<u64> {
        self.signals.made.subscribe()
    }
}

/// Puts another client in the place of one whose task has ended, for as long as somebody uses the link.
struct Keeper {
    current: Weak<RwLock<Current>>,
    settings: BusSettings,
    name: String,
    signals: Signals,
}

impl Keeper {
    async fn run(self) {
        while let Some(mut alive) = self.alive() {
            // It never changes: it is closed.
            while alive.changed().await.is_ok() {}
            if self.current.strong_count() == 0 {
                return;
            }
            warn!(connection = %self.name, "the client of {} has ended by itself: making another one", self.name);
            self.replace().await;
        }
    }

    fn alive(&self) -> Option<watch::Receiver<()>> {
        let current = self.current.upgrade()?;
        let alive = current.read().expect("no holder panics").alive.clone();
        Some(alive)
    }

    async fn replace(&self) {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MOST);
        let mut trouble = Trouble::new(format!("connect {} again", self.name));
        while self.current.strong_count() > 0 {
            // The first attempt waits as well: what ended one client may be the first that the next one is handed.
            backoff.pause().await;
            match connect(&self.settings, &self.name, &self.signals).await {
                Ok(next) => {
                    let Some(current) = self.current.upgrade() else { return };
                    *current.write().expect("no holder panics") = next;
                    self.signals.lost.send_modify(|count| *count += 1);
                    self.signals.made.send_modify(|count| *count += 1);
                    trouble.end();
                    return;
                }
                Err(error) => trouble.begin(Chain(&error).to_string()),
            };
        }
    }
}

async fn connect(settings: &BusSettings, name: &str, signals: &Signals) -> Result<Current, ConnectError> {
    let address = |url: &String| url.parse::<ServerAddr>().map_err(|_| ConnectError::Address(url.clone()));
    let addresses = settings.urls.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    if addresses.is_empty() {
        return Err(ConnectError::NoAddress);
    }
    let (living, alive) = watch::channel(());
    let connected = options(settings, name, (signals.clone(), living))?.connect(addresses).await;
    let client = connected.map_err(|source| ConnectError::Connect { urls: settings.urls.join(", "), source })?;
    let jetstream = jetstream::context::ContextBuilder::new().timeout(JETSTREAM_LIMIT).build(client.clone());
    Ok(Current { client, jetstream, alive })
}

async fn log_event(name: String, event: Event) {
    match event {
        Event::Connected => info!(connection = %name, "{name} connected"),
        Event::Disconnected => warn!(connection = %name, "{name} lost its connection"),
        Event::ServerError(error) => warn!(connection = %name, error = %Chain(&error), "server refused {name}"),
        Event::ClientError(error) => warn!(connection = %name, %error, "connection of {name} failed"),
        Event::SlowConsumer(_) => warn!(connection = %name, "{name} is too slow and lost messages"),
        Event::LameDuckMode | Event::Draining | Event::Closed => {}
    }
}

fn signed_in(path: &std::path::Path, nonce: &[u8]) -> Result<Auth, AuthError> {
    let credentials = Credentials::read(path).map_err(AuthError::new)?;
    let mut auth = Auth::new();
    auth.signature = Some(credentials.key.sign(nonce).map_err(AuthError::new)?);
    auth.jwt = Some(credentials.jwt);
    Ok(auth)
}

fn reconnect_delay(attempt: usize) -> Duration {
    let doubled = RECONNECT_FIRST * 2_u32.saturating_pow(u32::try_from(attempt).unwrap_or(8).min(8));
    doubled.min(RECONNECT_MOST)
}

fn options(
    settings: &BusSettings,
    name: &str,
    (signals, living): (Signals, watch::Sender<()>),
) -> Result<ConnectOptions, ConnectError> {
    let tls = client_config(&settings.tls).map_err(ConnectError::Tls)?;
    let options = match settings.creds_file.clone() {
        Some(path) => {
            // Read once before connecting, so that a bad file is an error and not an endless retry.
            Credentials::read(&path).map_err(ConnectError::Credentials)?;
            ConnectOptions::with_auth_callback(move |nonce| {
                let path = path.clone();
                async move { signed_in(&path, &nonce) }
            })
        }
        None => ConnectOptions::new(),
    };
    let event_name = name.to_owned();
    Ok(options
        .name(name)
        .require_tls(true)
        .tls_client_config(tls)
        .custom_inbox_prefix(&settings.inbox_prefix)
        .connection_timeout(CONNECT_LIMIT)
        .ping_interval(PING_EVERY)
        .ignore_discovered_servers()
        .reconnect_delay_callback({
            // The library asks before the very first attempt as well. Later ones wait, also after a connection that was
            // made: what ended it may end the next one at once.
            let is_first = AtomicBool::new(true);
            move |attempt| {
                if is_first.swap(false, Ordering::Relaxed) { Duration::ZERO } else { reconnect_delay(attempt) }
            }
        })
        .event_callback(move |event| {
            // Dropped with the client's task, which is how its end is noticed.
            let _ = &living;
            match event {
                Event::Disconnected => signals.lost.send_modify(|count| *count += 1),
                Event::Connected => signals.made.send_modify(|count| *count += 1),
                Event::ServerError(ServerError::Other(ref said)) => drop(signals.refused.send_replace(said.clone())),
                Event::ServerError(ServerError::AuthorizationViolation | ServerError::SlowConsumer(_))
                | Event::ClientError(_)
                | Event::SlowConsumer(_)
                | Event::LameDuckMode
                | Event::Draining
                | Event::Closed => {}
            }
            log_event(event_name.clone(), event)
        }))
}
