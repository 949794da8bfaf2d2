//! Everything that the doctor asks, reached as the users of the last start: it issues no credentials of its own.
//!
//! Each connection and each question has a limit, and what is away is a finding and no error.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use bulkhead_bus::{Role, UserName};
use bulkhead_runtime::{Bus, BusSettings, Chain};
use bulkhead_store::Inspection;
use futures_util::StreamExt;
use serde::Deserialize;

use super::finding::Area;
use super::home::Home;
use super::quorum::Presence;
use crate::files::read_state;
use crate::profile::Profile;
use crate::reason::reason;
use crate::up::{Site, issued_settings, system_settings};

/// How long anybody may take for an answer.
pub(super) const QUESTION_LIMIT: Duration = Duration::from_secs(4);
const CONNECT_LIMIT: Duration = Duration::from_secs(6);
/// What the other servers take to give up one that hangs: until then they ask its gatekeeper, too (ADR 12).
const NOTICE_LIMIT: Duration = Duration::from_secs(15);
/// Leaves that are asked at once.
const LEAVES_AT_ONCE: usize = 32;
const NAME: &str = "bulkhead doctor";
const DATABASE: &str = "bulkhead";

/// Something that can be asked, or why it cannot.
pub(super) enum Source<T> {
    Here(T),
    Away(String),
    /// No selected area needs it.
    Unasked,
}

impl<T> Source<T> {
    pub(super) fn get(&self) -> Option<&T> {
        match self {
            Self::Here(source) => Some(source),
            Self::Away(_) | Self::Unasked => None,
        }
    }

    async fn when(is_needed: bool, reached: impl Future<Output = Result<T, String>>) -> Self {
        if !is_needed {
            return Self::Unasked;
        }
        match reached.await {
            Ok(source) => Self::Here(source),
            Err(why) => Self::Away(why),
        }
    }
}

/// Core, asked as a person of the platform.
pub(super) struct Person {
    pub(super) bus: Bus,
    pub(super) user: UserName,
}

/// One site's leaf, asked as its forwarder.
pub(super) struct Leaf {
    pub(super) site: Site,
    pub(super) name: String,
    pub(super) bus: Source<Bus>,
}

/// All that is asked.
pub(super) struct Sources {
    pub(super) presence: Presence,
    pub(super) system: Source<Bus>,
    pub(super) provisioner: Source<Bus>,
    pub(super) person: Source<Person>,
    pub(super) database: Source<Inspection>,
    pub(super) leaves: Vec<Leaf>,
}

impl Sources {
    /// Whether a selected area needs the hub.
    pub(super) fn is_hub_asked(&self) -> bool {
        !matches!((&self.system, &self.provisioner, &self.person), (Source::Unasked, Source::Unasked, Source::Unasked))
    }
}

/// An answer within the limit, or why there is none.
pub(super) async fn limited<T, E: Error + 'static>(answer: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    within(QUESTION_LIMIT, answer).await
}

async fn within<T, E: Error + 'static>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// What a poller's settings say that matters here.
#[derive(Deserialize)]
pub(super) struct PollerSettings {
    forwarder: ForwarderSettings,
    #[serde(default)]
    pub(super) checks: Vec<CheckSettings>,
}

#[derive(Deserialize)]
struct ForwarderSettings {
    leaf: BusSettings,
}

#[derive(Deserialize)]
pub(super) struct CheckSettings {
    pub(super) interval_s: u32,
}

impl PollerSettings {
    /// Of the first poller of a site.
    pub(super) fn of_site(home: &Home, site: &Site) -> Result<Self, String> {
        let poller = site.pollers.first().ok_or("the site has no poller")?;
        let path = home.layout.poller(&site.tenant, &site.site, poller).join("poller.toml");
        let text = read_state(&path).map_err(|error| Chain(&error).to_string())?;
        toml::from_str(&text).map_err(|error| format!("{} is not readable: {}", home.shown(&path), error.message()))
    }
}

async fn connect(settings: &BusSettings, name: &str, presence: &Presence) -> Result<Bus, String> {
    let limit = if presence.is_any_away() { CONNECT_LIMIT + NOTICE_LIMIT } else { CONNECT_LIMIT };
    within(limit + CONNECT_LIMIT, Bus::connect_admitted(settings, name, limit)).await
}

/// Of the platform's own people, with the addresses of those hub servers that are there.
fn profile(home: &Home, presence: &Presence) -> Result<Profile, String> {
    let profile = Profile::read(&home.layout.profile("ops")).map_err(|error| Chain(&error).to_string())?;
    Ok(Profile { urls: presence.reachable(profile.urls), ..profile })
}

async fn connect_system(home: &Home, presence: &Presence) -> Result<Bus, String> {
    let urls = profile(home, presence)?.urls;
    connect(&system_settings(&home.layout, urls), NAME, presence).await
}

async fn connect_provisioner(home: &Home, presence: &Presence) -> Result<Bus, String> {
    let (authority, name) = (home.authority(), Role::Provisioner.name());
    let urls = profile(home, presence)?.urls;
    // The gatekeeper reads the role from the connection's name.
    connect(&issued_settings(&home.layout.provisioning(), name, &authority, urls), name, presence).await
}

async fn connect_person(home: &Home, presence: &Presence) -> Result<Person, String> {
    let profile = profile(home, presence)?;
    Ok(Person { bus: connect(&profile.bus_settings(), NAME, presence).await?, user: profile.user })
}

async fn connect_database(home: &Home) -> Result<Inspection, String> {
    let port = home.ports.get("postgres").ok_or("ports.json names no port of the database")?;
    let path = home.layout.secrets().join("postgres-provision.password");
    let password = read_state(&path).map_err(|error| Chain(&error).to_string())?;
    let url = format!("postgres://bulkhead_provision:{}@127.0.0.1:{port}/{DATABASE}", password.trim());
    within(CONNECT_LIMIT, Inspection::connect(&url)).await
}

async fn connect_leaf(home: &Home, site: &Site, is_needed: bool) -> Leaf {
    let reached = async {
        let settings = PollerSettings::of_site(home, site)?;
        within(CONNECT_LIMIT, Bus::connect(&settings.forwarder.leaf, NAME)).await
    };
    let bus = Source::when(is_needed, reached).await;
    Leaf { site: site.clone(), name: format!("{}/{}", site.tenant, site.site), bus }
}

/// Connects to whatever the selected areas need.
pub(super) async fn reach(home: &Home, areas: &[Area]) -> Sources {
    let is_for = |needing: &[Area]| areas.iter().any(|area| needing.contains(area));
    let system = is_for(&[Area::Links, Area::Versions, Area::Clock, Area::Disks, Area::Drift]);
    let provisioner = is_for(&[Area::Links, Area::Disks, Area::Streams, Area::Lag]);
    let person = is_for(&[Area::Links, Area::Lag]);
    // Of the areas only these two have nothing to ask it.
    let database = areas.iter().any(|area| !matches!(area, Area::Certificates | Area::Lag));
    let leaves = is_for(&[Area::Links, Area::Versions, Area::Disks, Area::Streams, Area::Lag]);
    let presence = if system || provisioner || person { Presence::of(home).await } else { Presence::default() };
    let connecting = home.sites.iter().map(|site| connect_leaf(home, site, leaves));
    let connecting = futures_util::stream::iter(connecting).buffered(LEAVES_AT_ONCE);
    let (system, provisioner, person, database, leaves) = tokio::join!(
        Source::when(system, connect_system(home, &presence)),
        Source::when(provisioner, connect_provisioner(home, &presence)),
        Source::when(person, connect_person(home, &presence)),
        Source::when(database, connect_database(home)),
        connecting.collect(),
    );
    Sources { presence, system, provisioner, person, database, leaves }
}
