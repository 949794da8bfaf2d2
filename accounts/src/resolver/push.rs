//! Pushes one account's token and waits until every known server has it in force.
//!
//! What the servers hold is looked up first: a change that somebody else made since is not overwritten. Two pushers at
//! the very same time are told apart afterwards, when a server shows neither the base nor ours.

use std::time::{Duration, Instant};

use bulkhead_bus::AccountKey;
use bulkhead_claims::{Claims, DecodeError, decode_json};
use bulkhead_runtime::{Backoff, Bus};
use serde_json::Value;

use super::asking::{CONNECTION_LIMIT, KnownServers, NotAsked, ServerFacts, servers, some_servers};
use super::held::{Base, Held, look_up};
use super::refusal::Refusal;
use super::standing::{Memory, Missing, Place, Standing, ask_memory, issued_at, look, store};

const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_MOST: Duration = Duration::from_millis(500);

/// One account's token on its way to the servers.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// What people call the account.
    pub name: &'a str,
    pub account: &'a AccountKey,
    pub token: &'a str,
    pub base: Base,
}

/// How long to wait for servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// For those that are up, and for those that are away to come back.
    Everybody(Duration),
    /// Only for those that are up: those that are away are named at once.
    Present(Duration),
}

impl Patience {
    pub(super) fn limit(self) -> Duration {
        match self {
            Self::Everybody(limit) | Self::Present(limit) => limit,
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::Everybody(Duration::from_secs(15))
    }
}

/// What a server said in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerReport {
    pub server: String,
    pub is_stored: bool,
    pub is_in_memory: bool,
    /// Whether every import finds its exporter.
    pub is_complete: bool,
}

/// A token that is in force on every known server.
#[derive(Debug, Clone)]
pub struct PushReport {
    pub servers: Vec<ServerReport>,
    pub took: Duration,
}

/// Why a push is not in force everywhere.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("push account {account}")]
    NotAsked { account: String, source: NotAsked },
    #[error("the token of account {account} is not readable")]
    Token { account: String, source: DecodeError },
    #[error("the token of account {account} is about {subject}, and not about {key}")]
    OtherSubject { account: String, subject: String, key: String },
    #[error(
        "account {account} was changed by somebody else: the servers hold {}; nothing was overwritten: compare with \
         `bulkhead diff {account}`, take over what is wanted and push again",
        shown(.held)
    )]
    Changed { account: String, held: Vec<Held> },
    #[error(
        "the token of account {account} was issued at {ours}, and servers hold one issued at {theirs}: a server that was \
         away would bring the later one back; sign the account anew"
    )]
    NotNewer { account: String, ours: i64, theirs: i64 },
    #[error("account {account}: {refusal}")]
    Refused { account: String, refusal: Refusal },
    #[error("account {account} is not in force everywhere: {}", told(.missing))]
    NotConverged { account: String, missing: Vec<(String, Missing)> },
    #[error("push account {account}: {answered} of {expected} servers of the hub answer")]
    TooFew { account: String, expected: usize, answered: usize },
}

impl PushError {
    /// Whether it may still come about: a server has not answered or does not show it yet.
    #[must_use]
    pub fn is_not_converged(&self) -> bool {
        match self {
            Self::NotConverged { .. } | Self::TooFew { .. } => true,
            Self::NotAsked { .. }
            | Self::Token { .. }
            | Self::OtherSubject { .. }
            | Self::Changed { .. }
            | Self::NotNewer { .. }
            | Self::Refused { .. } => false,
        }
    }
}

fn shown(held: &[Held]) -> String {
    held.iter().map(ToString::to_string).collect::<Vec<_>>().join(", and ")
}

fn told(missing: &[(String, Missing)]) -> String {
    missing.iter().map(|(server, what)| format!("{server} {what}")).collect::<Vec<_>>().join(", ")
}

/// An order that was found to be one.
pub(super) struct Checked<'a> {
    order: &'a Order<'a>,
    claims: Claims<Value>,
}

impl<'a> Checked<'a> {
    pub(super) fn new(order: &'a Order<'a>) -> Result<Self, PushError> {
        let account = || order.name.to_owned();
        let claims: Claims<Value> =
            decode_json(order.token).map_err(|source| PushError::Token { account: account(), source })?;
        if claims.sub != order.account.as_str() {
            let key = order.account.to_string();
            return Err(PushError::OtherSubject { account: account(), subject: claims.sub, key });
        }
        Ok(Self { order, claims })
    }

    fn failed(&self, source: NotAsked) -> PushError {
        PushError::NotAsked { account: self.order.name.to_owned(), source }
    }

    /// What the servers' disks hold. Nobody answering is our own connection being made anew, and says nothing of them.
    pub(super) async fn look_at_disks(
        &self,
        system: &Bus,
        known: &KnownServers,
        alive: usize,
    ) -> Result<Vec<Option<String>>, PushError> {
        let started = Instant::now();
        let mut pace = Backoff::new(LOOK_FIRST, LOOK_MOST);
        loop {
            let disks = look_up(system, self.order.account.as_str(), alive.max(1)).await;
            let disks = disks.map_err(|error| self.failed(error))?;
            if !disks.is_empty() {
                return Ok(disks);
            }
            if started.elapsed() >= CONNECTION_LIMIT {
                let account = self.order.name.to_owned();
                return Err(PushError::TooFew { account, expected: known.count(), answered: 0 });
            }
            pace.pause().await;
        }
    }

    /// Whether every known server has exactly this token, on its disk and in force.
    pub(super) async fn is_in_force(
        &self,
        system: &Bus,
        known: &KnownServers,
        disks: &[Option<String>],
    ) -> Result<bool, PushError> {
        let has_it = |disk: &Option<String>| disk.as_deref() == Some(self.order.token);
        if disks.len() < known.count() || !disks.iter().all(has_it) {
            return Ok(false);
        }
        let asked = ask_memory(system, self.order.account.as_str(), known.count()).await;
        let mut standing = Standing::default();
        for said in asked.map_err(|error| self.failed(error))? {
            standing.remember(&said, self.order.token);
        }
        Ok(standing.missing(known).is_empty())
    }

    /// Refuses when the servers' disks hold what this push was not made from.
    pub(super) async fn check_base(&self, system: &Bus, disks: Vec<Option<String>>) -> Result<(), PushError> {
        if self.order.base == Base::Anything {
            return Ok(());
        }
        let enough = disks.len();
        let mut found: Vec<(String, usize)> = Vec::new();
        for token in disks.into_iter().flatten().filter(|token| token != self.order.token) {
            match found.iter_mut().find(|(known, _)| *known == token) {
                Some((_, copies)) => *copies += 1,
                None => found.push((token, 1)),
            }
        }
        let claims = |token: &str| decode_json(token).ok();
        let foreign: Vec<&(String, usize)> =
            found.iter().filter(|(token, _)| !self.order.base.allows(token, claims(token).as_ref())).collect();
        if !foreign.is_empty() {
            return Err(self.changed(system, &foreign, enough).await?);
        }
        let latest = found.iter().map(|(token, _)| issued_at(token)).max();
        match latest.filter(|&theirs| theirs >= self.claims.iat) {
            Some(theirs) => {
                Err(PushError::NotNewer { account: self.order.name.to_owned(), ours: self.claims.iat, theirs })
            }
            None => Ok(()),
        }
    }

    /// Disks do not say whose they are, memories do.
    async fn changed(&self, system: &Bus, foreign: &[&(String, usize)], enough: usize) -> Result<PushError, PushError> {
        let asked = ask_memory(system, self.order.account.as_str(), enough).await;
        let memories = asked.map_err(|error| self.failed(error))?;
        let held = foreign.iter().map(|(token, copies)| {
            let mut held = Held::new(token, *copies, &self.claims);
            let has_it = memories.iter().filter(|said| said.data["account_detail"]["jwt"] == token.as_str());
            held.servers = has_it.map(|said| said.server.name.clone()).collect();
            held.servers.sort();
            held
        });
        Ok(PushError::Changed { account: self.order.name.to_owned(), held: held.collect() })
    }

    /// A token that came after ours while we were pushing.
    fn overtaken(&self, standing: &Standing) -> Option<PushError> {
        let mut held: Vec<Held> = Vec::new();
        for (server, place) in &standing.0 {
            let Some(Memory::Other { token }) = &place.memory else { continue };
            let theirs = decode_json(token).ok();
            let is_later = theirs.as_ref().is_some_and(|theirs| theirs.iat >= self.claims.iat);
            if !is_later || self.order.base.allows(token, theirs.as_ref()) {
                continue;
            }
            let id = theirs.map(|claims| claims.jti).unwrap_or_default();
            match held.iter_mut().find(|known| known.id == id) {
                Some(known) => {
                    known.copies += 1;
                    known.servers.push(server.clone());
                }
                None => held.push(Held { servers: vec![server.clone()], ..Held::new(token, 1, &self.claims) }),
            }
        }
        (!held.is_empty()).then(|| PushError::Changed { account: self.order.name.to_owned(), held })
    }

    async fn push_once(&self, system: &Bus, alive: &[ServerFacts]) -> Result<Standing, PushError> {
        let stored = store(system, self.order.token, alive).await.map_err(|error| self.failed(error))?;
        let mut standing =
            stored.map_err(|refusal| PushError::Refused { account: self.order.name.to_owned(), refusal })?;
        let looked = look(system, self.order.account.as_str(), self.order.token, &mut standing).await;
        looked.map_err(|error| self.failed(error))?;
        Ok(standing)
    }

    /// Pushes again and again: it does no harm, and the connection may have been on a server that has just died.
    pub(super) async fn push(
        &self,
        system: &Bus,
        known: &KnownServers,
        mut alive: Vec<ServerFacts>,
        patience: Patience,
    ) -> Result<PushReport, PushError> {
        let started = Instant::now();
        let mut pace = Backoff::new(LOOK_FIRST, LOOK_MOST);
        loop {
            let standing = self.push_once(system, &alive).await?;
            if let Some(overtaken) = self.overtaken(&standing) {
                return Err(overtaken);
            }
            let missing = standing.missing(known);
            if missing.is_empty() {
                // Memories are asked beside the queue of changes: what somebody else stored right behind ours is on the disk
                // before it is there.
                let disks = self.look_at_disks(system, known, known.count()).await?;
                self.check_base(system, disks).await?;
                return Ok(PushReport { servers: reports(&standing), took: started.elapsed() });
            }
            let waits = match patience {
                Patience::Everybody(_) => true,
                Patience::Present(_) => {
                    standing.0.is_empty() || missing.iter().any(|(_, what)| *what != Missing::Silent)
                }
            };
            if !waits || started.elapsed() >= patience.limit() {
                return Err(PushError::NotConverged { account: self.order.name.to_owned(), missing });
            }
            pace.pause().await;
            alive = servers(system, known.count()).await.map_err(|error| self.failed(error))?;
        }
    }
}

fn reports(standing: &Standing) -> Vec<ServerReport> {
    let report = |(server, place): (&String, &Place)| ServerReport {
        server: server.clone(),
        is_stored: place.is_stored,
        is_in_memory: matches!(place.memory, Some(Memory::InForce { .. })),
        is_complete: matches!(place.memory, Some(Memory::InForce { is_complete: true })),
    };
    standing.0.iter().map(report).collect()
}

/// Pushes one token over `system`, a connection in the system account.
///
/// # Errors
/// [`PushError`] says what is missing where, and what to do. After [`PushError::Changed`] and [`PushError::NotNewer`]
/// before the first server was told, nothing was overwritten.
pub async fn push_order(
    system: &Bus,
    order: &Order<'_>,
    known: &KnownServers,
    patience: Patience,
) -> Result<PushReport, PushError> {
    let checked = Checked::new(order)?;
    let alive = some_servers(system, known.count()).await.map_err(|error| checked.failed(error))?;
    let disks = checked.look_at_disks(system, known, alive.len()).await?;
    checked.check_base(system, disks).await?;
    checked.push(system, known, alive, patience).await
}
