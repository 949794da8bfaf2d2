//! Files that were rendered, against what this release renders; and against what the hub's servers have loaded.

use std::fs;
use std::path::Path;

use super::finding::{Area, Finding, Look};
use super::home::{Home, HubFolder, config_text};
use super::known::Known;
use super::processes::{Process, output_of, processes};
use super::servers::Said;
use crate::gate::{AUTH, GateSecrets, SENT};
use crate::hub_files::{HubServerFiles, Roots, Routes, Trust};
use crate::nats_config::CalloutConfig;
use crate::operator::SYSTEM;
use crate::seal::{Sealed, sealed};
use crate::up::{Site, leaf_config};

static CONFIGURATION: Look = Look {
    area: Area::Drift,
    name: "server-configuration",
    rule: "a server's configuration file is what this release renders",
    meaning: "it was edited by hand, or made by another release; the next start overwrites it",
};
static SETTINGS: Look = Look {
    area: Area::Drift,
    name: "settings-file",
    rule: "a service's settings file is as it was rendered",
    meaning: "it was edited by hand: the next start overwrites the edit",
};
static LOADED: Look = Look {
    area: Area::Drift,
    name: "configuration-loaded",
    rule: "a hub server has loaded the configuration that lies in its file",
    meaning: "what is in the file is not in force until the server is started again",
};

pub(super) const LOOKS: &[&Look] = &[&CONFIGURATION, &SETTINGS, &LOADED];

/// Values of `key: value` lines, as JSON; the choices that a start has made and that are taken from the file.
fn values<T: serde::de::DeserializeOwned>(config: &str, key: &str) -> Vec<T> {
    let prefix = format!("{key}: ");
    let values = config.lines().filter_map(|line| line.trim_start().strip_prefix(&prefix));
    values.filter_map(|value| serde_json::from_str(value.trim_end()).ok()).collect()
}

/// What a hub server's file should be, with the ports and routes that it has.
fn expected_hub(home: &Home, known: &Known, hub: &HubFolder, config: &str) -> Result<String, String> {
    let authority = home.authority();
    let system = known.named(SYSTEM).ok_or("the system account cannot be read")?;
    let mut listens = values::<String>(config, "listen").into_iter();
    let mut listen = || listens.next().ok_or("it does not say where it listens");
    let (client_listen, leaf_listen) = (listen()?, listen()?);
    let routes = match config.contains("\ncluster {") {
        false => None,
        true => {
            let urls = values::<Vec<String>>(config, "routes").into_iter().next().unwrap_or_default();
            Some(Routes { listen: listen()?, urls })
        }
    };
    let folder = hub.folder.as_path();
    let expected = HubServerFiles {
        server_name: hub.server_name.clone(),
        client_listen,
        leaf_listen,
        routes,
        hosts: vec![],
        roots: Roots::InPlace,
        folder,
        found_at: folder,
        data: folder,
    };
    let (auth, sent) = known.named(AUTH).zip(known.named(SENT)).ok_or("AUTH or SENT cannot be read")?;
    // As it lies there: a doctor makes nothing.
    let sentinel_token = std::fs::read_to_string(GateSecrets::new(&home.layout).sentinel_file());
    let sentinel_token = sentinel_token.map_err(|error| format!("the sentinel's token: {error}"))?;
    let callout = CalloutConfig { pinned: vec![auth.key.to_string(), sent.key.to_string()], sentinel_token };
    let trust = Trust {
        operator_token: &known.operator.token,
        system_account: system.key.as_str(),
        system_token: &system.token,
        callout: &callout,
    };
    expected.render(&authority, trust).map_err(|error| error.to_string())
}

fn expected_leaf(home: &Home, site: &Site, config: &str) -> Result<String, String> {
    let authority = home.authority();
    let listen = config_text(config, "listen").ok_or("it does not say where it listens")?;
    let urls = values::<Vec<String>>(config, "urls").into_iter().next().ok_or("it does not say whom it links to")?;
    leaf_config(&home.layout, &authority, site, listen, urls).render().map_err(|error| error.to_string())
}

/// The first line that differs, by its number and its first word: values may be long.
fn first_difference(expected: &str, found: &str) -> Option<String> {
    if expected == found {
        return None;
    }
    let same = expected.lines().zip(found.lines()).take_while(|(ours, theirs)| ours == theirs).count();
    let line = found.lines().nth(same).or_else(|| expected.lines().nth(same)).unwrap_or_default();
    let word = line.trim_start().split([':', ' ']).next().unwrap_or_default();
    Some(format!("line {} ({word}) is not what is rendered", same + 1))
}

fn configuration_finding(home: &Home, path: &Path, expected: impl FnOnce(&str) -> Result<String, String>) -> Finding {
    let shown = home.shown(path);
    let found = fs::read_to_string(path).map_err(|error| error.to_string());
    let difference = found.and_then(|found| Ok(first_difference(&expected(&found)?, &found)));
    match difference {
        Ok(None) => CONFIGURATION.ok(&shown, "as rendered"),
        Ok(Some(difference)) => CONFIGURATION.fail(&shown, difference, home.restart_advice()),
        Err(why) => CONFIGURATION.fail(&shown, why, home.restart_advice()),
    }
}

fn settings_finding(home: &Home, path: &Path) -> Finding {
    let shown = home.shown(path);
    match fs::read_to_string(path).map(|text| sealed(&text)) {
        Ok(Sealed::Whole) => SETTINGS.ok(&shown, "as rendered"),
        Ok(Sealed::Broken) => SETTINGS.warn(&shown, "it was edited since", home.restart_advice()),
        Ok(Sealed::Never) => SETTINGS.warn(&shown, "it was not rendered by this release", home.restart_advice()),
        Err(error) => SETTINGS.fail(&shown, error.to_string(), home.restart_advice()),
    }
}

/// The process that was started with this configuration.
fn server_of<'a>(running: &'a [Process], config: &Path) -> Option<&'a Process> {
    let config = config.as_os_str().as_encoded_bytes();
    running.iter().find(|process| {
        let line = process.pid.and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok()).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|argument| argument == config)
    })
}

/// The digest in `configuration file x is valid (sha256:…)`.
fn digest_in(said: &str) -> Option<&str> {
    let digest = said.split_once("(sha256:")?.1.split_once(')')?.0;
    (digest.len() == 64).then_some(digest)
}

async fn loaded_finding(home: &Home, hub: &HubFolder, said: &Said, running: &[Process]) -> Finding {
    let (subject, config) = (&hub.server_name, hub.config_file());
    let Some(program) = server_of(running, &config).and_then(Process::program) else {
        return LOADED.skip(subject, "its process was not found");
    };
    let shown = config.display().to_string();
    let tested = match output_of(&program, &["-t", "-c", &shown]).await {
        Ok(tested) => tested,
        Err(why) => return LOADED.fail(subject, format!("the server refuses the file: {why}"), home.restart_advice()),
    };
    let loaded = said.data["config_digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    match (digest_in(&tested), loaded) {
        (Some(file), Some(loaded)) if file == loaded => LOADED.ok(subject, "the file's"),
        (Some(_), Some(_)) => LOADED.warn(subject, "another one than the file's", home.restart_advice()),
        (None, _) | (_, None) => LOADED.skip(subject, "this nats-server does not say which configuration it has"),
    }
}

pub(super) async fn look(home: &Home, said: &[Said], known: Option<&Known>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(known) = known {
        let of_hub = |hub: &HubFolder| {
            configuration_finding(home, &hub.config_file(), |config| expected_hub(home, known, hub, config))
        };
        findings.extend(home.hubs.iter().map(of_hub));
    }
    findings.push(settings_finding(home, &home.layout.core().join("core.toml")));
    for site in &home.sites {
        let folder = home.layout.site(&site.tenant, &site.site);
        findings
            .push(configuration_finding(home, &folder.join("leaf.conf"), |config| expected_leaf(home, site, config)));
        for poller in &site.pollers {
            let folder = home.layout.poller(&site.tenant, &site.site, poller);
            findings.push(settings_finding(home, &folder.join("poller.toml")));
        }
    }
    let running = processes(home);
    for hub in &home.hubs {
        findings.push(match said.iter().find(|said| said.server == hub.server_name) {
            Some(said) => loaded_finding(home, hub, said, &running).await,
            None => LOADED.skip(&hub.server_name, "the server cannot be asked"),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named_without_its_value() {
        let text = "# a\nserver_name: \"x\"\noperator: \"secret\"\n";
        assert_eq!(first_difference(text, text), None);
        let edited = text.replace("secret", "other");
        let difference = first_difference(text, &edited).unwrap();
        assert_eq!(difference, "line 3 (operator) is not what is rendered");
        assert!(first_difference(text, "# a\n").unwrap().contains("line 2 (server_name)"));
        assert!(first_difference(text, &format!("{text}port: 1\n")).unwrap().contains("line 4 (port)"));
    }

    #[test]
    fn choices_are_read_from_the_file() {
        let config =
            "listen: \"127.0.0.1:1\"\nleafnodes {\n  listen: \"127.0.0.1:2\"\n  urls: [\"tls://a\", \"tls://b\"]\n}";
        assert_eq!(values::<String>(config, "listen"), ["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(values::<Vec<String>>(config, "urls"), [["tls://a", "tls://b"]]);
        assert!(values::<String>(config, "routes").is_empty());
    }

    #[test]
    fn a_digest_is_read_from_what_the_server_prints() {
        let digest = "a3a964bf9326967b2585dc7865c4ff5d8194e7e2c8af82f3b5b745acd5c9c788";
        let said = format!("nats-server: configuration file s.conf is valid (sha256:{digest})\n");
        assert_eq!(digest_in(&said), Some(digest));
        assert_eq!(digest_in("nats-server: configuration file s.conf is valid\n"), None);
    }
}
