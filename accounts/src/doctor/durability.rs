//! Whether the database keeps what it has committed when its machine loses power.

use bulkhead_store::rights::Settings;

use super::finding::{Area, Finding, Level, Look};
use super::grants::TRUE;
use super::reach::{Sources, limited};

static DURABILITY: Look = Look {
    area: Area::Disks,
    name: "database-durability",
    rule: "the database has fsync and full_page_writes on, or it is a failure, and synchronous_commit is not off for anybody",
    meaning: "when the machine loses power, results are gone that were taken off the streams as stored, or the whole database is damaged",
};

pub(super) const LOOKS: &[&Look] = &[&DURABILITY];

const COMMIT: &str = "synchronous_commit";
/// Settings that only the server has, and the one that everybody may have.
pub(super) const DURABLE: [&str; 3] = ["fsync", "full_page_writes", COMMIT];

fn is_off(value: &str) -> bool {
    ["off", "false", "no", "0"].contains(&value)
}

fn server_finding(name: &str, value: &str) -> Finding {
    let found = format!("{name} is {value}");
    let on = format!("as superuser: alter system set {name} = on; select pg_reload_conf()");
    match name {
        COMMIT => {
            let level = if is_off(value) { Level::Warn } else { Level::Ok };
            let advice =
                format!("{on}. Core asks for it in its own sessions; whatever else writes loses its last moments");
            DURABILITY.at(level, "server", found, &advice)
        }
        _ => {
            let level = if TRUE.contains(&value) { Level::Ok } else { Level::Fail };
            let advice = format!(
                "{on}; checkpoint. When the machine has crashed meanwhile: restore the database from a backup, for nobody sees what is damaged"
            );
            DURABILITY.at(level, "server", found, &advice)
        }
    }
}

fn findings(settings: &Settings) -> Vec<Finding> {
    let own: Vec<_> = settings.own.iter().filter(|setting| setting.name == COMMIT).collect();
    let server = settings.server.iter().filter(|(name, _)| DURABLE.contains(&name.as_str()));
    // Where somebody has a value of his own, the server's cannot be told from it.
    let mut all: Vec<Finding> = server
        .filter(|(name, _)| name != COMMIT || own.is_empty())
        .map(|(name, value)| server_finding(name, value))
        .collect();
    all.extend(own.into_iter().map(|setting| {
        let level = if is_off(&setting.value) { Level::Warn } else { Level::Ok };
        let advice = format!(
            "as superuser: alter {} reset {COMMIT}. Core asks for it in its own sessions; whatever else writes loses its last moments",
            setting.of
        );
        DURABILITY.at(level, &setting.of, format!("{COMMIT} is {}", setting.value), &advice)
    }));
    all
}

pub(super) async fn look(sources: &Sources) -> Vec<Finding> {
    let Some(database) = sources.database.get() else {
        return vec![DURABILITY.skip("database", "the database cannot be asked")];
    };
    match limited(database.settings()).await {
        Ok(settings) => findings(&settings),
        Err(why) => vec![DURABILITY.warn("database", why, "look again; read logs/postgres.log")],
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_store::rights::OwnSetting;

    use super::*;

    fn levels([fsync, pages, commit]: [&str; 3], own: Option<&str>) -> Vec<(String, Level)> {
        let server = DURABLE.into_iter().zip([fsync, pages, commit]);
        let own = own.map(|value| OwnSetting {
            of: "role bulkhead_core".to_owned(),
            name: COMMIT.to_owned(),
            value: value.to_owned(),
        });
        let settings = Settings {
            own: own.into_iter().collect(),
            server: server.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        };
        let wrong = findings(&settings).into_iter().filter(|finding| finding.level != Level::Ok);
        wrong.map(|finding| (finding.subject, finding.level)).collect()
    }

    #[test]
    fn a_database_that_forgets_is_a_failure_and_one_that_may_lose_its_last_moments_a_warning() {
        let server = |level| [("server".to_owned(), level)];
        assert_eq!(levels(["on", "on", "on"], None), []);
        assert_eq!(levels(["on", "on", "local"], None), []);
        assert_eq!(levels(["off", "on", "on"], None), server(Level::Fail));
        assert_eq!(levels(["on", "off", "on"], None), server(Level::Fail));
        assert_eq!(levels(["on", "on", "off"], None), server(Level::Warn));
        assert_eq!(levels(["on", "on", "on"], Some("off")), [("role bulkhead_core".to_owned(), Level::Warn)]);
        assert_eq!(levels(["on", "on", "on"], Some("on")), []);
    }
}
