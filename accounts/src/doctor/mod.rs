//! `bulkhead doctor`: looks at everything and says what is wrong and what to do.
//!
//! It changes nothing, issues nothing and shows no secret. Every question has a limit; what cannot be looked at is a
//! finding, and the rest goes on. Rules are pure functions over what was seen; `docs/doctor.md` lists them.

mod certificates;
mod clock;
mod disks;
mod drift;
mod drift_files;
mod durability;
mod elsewhere;
mod finding;
mod grants;
mod home;
mod known;
mod lag;
mod links;
mod listeners;
mod permissions;
mod processes;
mod quorum;
mod reach;
mod rights;
mod row_security;
mod server_log;
mod servers;
mod sharing;
mod stream_state;
mod streams;
mod trust;
mod versions;

use std::path::PathBuf;

use time::OffsetDateTime;

pub use finding::{Area, AreaError, Finding, Level, Look, Report};

use self::home::Home;
use self::known::Known;
use self::reach::{Sources, reach};
use self::servers::Hub;
use self::stream_state::{StreamState, ask_streams};
use crate::tenancy::PlatformSettings;
use crate::up::Programs;

/// What to look at.
#[derive(Debug, Clone)]
pub struct Options {
    pub home: PathBuf,
    pub areas: Vec<Area>,
    /// The services' programs that are installed.
    pub programs: Programs,
    pub now: OffsetDateTime,
}

/// There is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum NoDeployment {
    #[error("{home} holds no deployment: start one with `bulkhead up`, or name its folder with --home")]
    Nothing { home: String },
    #[error(
        "the servers of {home} run elsewhere (at {url}), and the doctor looks at what `bulkhead up` runs: `bulkhead diff` \
         compares the servers with this home, `bulkhead hub status` asks them how they are, `bulkhead validate` and \
         `bulkhead expirations` look at what is here"
    )]
    Elsewhere { home: String, url: String },
}

/// Every look that there is, for the page that describes them.
#[must_use]
pub fn looks() -> Vec<&'static Look> {
    let all = [
        quorum::LOOKS,
        links::LOOKS,
        versions::LOOKS,
        clock::LOOKS,
        certificates::LOOKS,
        listeners::LOOKS,
        disks::LOOKS,
        durability::LOOKS,
        streams::LOOKS,
        lag::LOOKS,
        drift::LOOKS,
        drift_files::LOOKS,
        permissions::LOOKS,
        row_security::LOOKS,
        elsewhere::LOOKS,
        grants::LOOKS,
        rights::LOOKS,
        sharing::LOOKS,
    ];
    all.concat()
}

/// Looks at the selected areas of a deployment.
///
/// # Errors
/// When the folder holds no deployment at all.
pub async fn examine(options: &Options, announce: &dyn Fn(&str)) -> Result<Report, NoDeployment> {
    let home = Home::read(&options.home, options.now);
    if !home.is_deployment() {
        return Err(NoDeployment::Nothing { home: options.home.display().to_string() });
    }
    // Settings that cannot be read are found further down.
    if let Some(url) = PlatformSettings::read(&home.layout).ok().as_ref().and_then(PlatformSettings::elsewhere) {
        return Err(NoDeployment::Elsewhere { home: options.home.display().to_string(), url: url.to_owned() });
    }
    announce("connecting as the users of the last start");
    let sources = reach(&home, &options.areas).await;
    let mut findings = links::reached(&home, &sources).await;
    announce("asking the hub and the leaves");
    let (hub, streams) = tokio::join!(ask_hub(&sources), ask_streams(&sources));
    let hub = hub.unwrap_or_else(|why| {
        findings.push(links::unanswered(&home, why));
        Hub::default()
    });
    let known = Known::read(&home);
    let core_answers = findings.iter().any(links::is_core_there);
    let seen = Seen {
        home: &home,
        sources: &sources,
        hub: &hub,
        streams: &streams,
        known: &known,
        core_answers,
        areas: &options.areas,
    };
    for &area in &options.areas {
        announce(&format!("looking at {area}"));
        findings.extend(seen.look_at(area, &options.programs).await);
    }
    Ok(Report { findings })
}

async fn ask_hub(sources: &Sources) -> Result<Hub, String> {
    match sources.system.get() {
        Some(system) => Hub::ask(system, sources.presence.there()).await,
        None => Ok(Hub::default()),
    }
}

/// What all areas look at.
struct Seen<'a> {
    home: &'a Home,
    sources: &'a Sources,
    hub: &'a Hub,
    streams: &'a [StreamState],
    known: &'a Result<Known, String>,
    core_answers: bool,
    areas: &'a [Area],
}

impl Seen<'_> {
    async fn look_at(&self, area: Area, programs: &Programs) -> Vec<Finding> {
        let Self { home, sources, hub, streams, known, core_answers, areas } = *self;
        match area {
            Area::Links => {
                let known = known.as_ref().ok();
                let links = links::look(home, sources, hub, known).await;
                let shared = sharing::look_at_links(home, sources).await;
                [links, elsewhere::look_at_links(home, sources, hub, known), shared].concat()
            }
            Area::Versions => versions::look(home, sources, hub, programs).await,
            Area::Clock => clock::look(sources, hub).await,
            Area::Certificates => {
                [certificates::look(home, known.as_ref().ok()), listeners::look(home, areas).await].concat()
            }
            Area::Disks => [disks::look(home, sources, hub, streams), durability::look(sources).await].concat(),
            Area::Streams => streams::look(home, sources, hub, streams).await,
            Area::Lag => {
                let here = lag::look(home, sources, streams, core_answers).await;
                let shared = sharing::look_at_lag(home, sources.presence.lost().as_deref()).await;
                [here, elsewhere::look_at_lag(home, sources, core_answers).await, shared].concat()
            }
            Area::Drift => {
                let accounts = drift::look(home, sources, hub, known).await;
                [accounts, drift_files::look(home, &hub.settings, known.as_ref().ok()).await].concat()
            }
            Area::Permissions => {
                let (locks, grants) = (row_security::look(sources).await, grants::look(sources).await);
                [permissions::look(home), locks, grants, rights::look(home, known)].concat()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_lists_every_look_with_its_rule_and_what_it_means() {
        let page = include_str!("../../../docs/doctor.md");
        for look in looks() {
            let row = format!("| `{}` | {} | {} | ", look.name, look.rule, look.meaning);
            let section = page.split(&format!("\n## {}\n", look.area)).nth(1).unwrap_or_default();
            let section = section.split("\n## ").next().unwrap_or_default();
            assert!(section.contains(&row), "in section {}: {row}", look.area);
        }
        let rows = page.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, looks().len(), "a row is about no look");
    }

    #[test]
    fn every_look_has_a_word_of_its_own() {
        let names: BTreeSet<&str> = looks().iter().map(|look| look.name).collect();
        assert_eq!(names.len(), looks().len());
        let is_word = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        assert!(names.iter().all(|name| is_word(name)));
    }

    #[tokio::test]
    async fn a_folder_without_a_deployment_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let programs = Programs::beside(folder.path().join("bulkhead"));
        let home = folder.path().to_owned();
        let options = Options { home, areas: vec![], programs, now: OffsetDateTime::UNIX_EPOCH };
        let refused = examine(&options, &|_| {}).await.unwrap_err().to_string();
        assert!(refused.contains("bulkhead up") && refused.contains("--home"), "{refused}");
    }
}
