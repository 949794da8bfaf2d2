//! `bulkhead doctor`: looks at everything and says what is wrong and what to do.
//!
//! It changes nothing, issues nothing and shows no secret. Every question has a limit; what cannot be looked at is a
//! finding, and the rest goes on. Rules are pure functions over what was seen; `docs/doctor.md` lists them.

mod certificates;
mod finding;
mod home;
mod links;
mod permissions;
mod processes;
mod reach;
mod servers;
mod trust;
mod versions;

use std::path::PathBuf;

use time::OffsetDateTime;

pub use finding::{Area, AreaError, Finding, Level, Look, Report};

use self::home::Home;
use self::reach::{Sources, reach};
use self::servers::Hub;
use crate::operator::OperatorStore;
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
#[error("{home} holds no deployment: start one with `bulkhead up`, or name its folder with --home")]
pub struct NoDeployment {
    home: String,
}

/// Every look that there is, for the page that describes them.
#[must_use]
pub fn looks() -> Vec<&'static Look> {
    let all = [links::LOOKS, versions::LOOKS, certificates::LOOKS, permissions::LOOKS];
    all.concat()
}

/// Looks at the selected areas of a deployment.
///
/// # Errors
/// When the folder holds no deployment at all.
pub async fn examine(options: &Options, announce: &dyn Fn(&str)) -> Result<Report, NoDeployment> {
    let home = Home::read(&options.home, options.now);
    if !home.is_deployment() {
        return Err(NoDeployment { home: options.home.display().to_string() });
    }
    announce("connecting as the users of the last start");
    let sources = reach(&home, &options.areas).await;
    let hub = match sources.system.get() {
        Some(system) => Hub::ask(system, home.hubs.len()).await.unwrap_or_default(),
        None => Hub::default(),
    };
    let operator = OperatorStore::read(home.layout.operator()).ok().flatten();
    let mut report = Report { findings: links::reached(&home, &sources).await };
    for &area in &options.areas {
        announce(&format!("looking at {area}"));
        report.findings.extend(look_at(area, &home, &sources, &hub, operator.as_ref(), options).await);
    }
    Ok(report)
}

async fn look_at(
    area: Area,
    home: &Home,
    sources: &Sources,
    hub: &Hub,
    operator: Option<&OperatorStore>,
    options: &Options,
) -> Vec<Finding> {
    match area {
        Area::Versions => versions::look(home, sources, hub, &options.programs).await,
        Area::Certificates => certificates::look(home, operator),
        Area::Permissions => permissions::look(home),
        Area::Links | Area::Clock | Area::Disks | Area::Streams | Area::Lag | Area::Drift => vec![],
    }
}
