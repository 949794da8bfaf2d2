//! Renders the texts in `site-files/` from typed names. Each format has one door for values: a unit takes only words that mean
//! nothing to systemd, YAML takes everything and escapes it; a README is read by people and holds only checked values.

use std::path::PathBuf;

use bulkhead_bus::PollerName;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;

use super::manifest::BundleManifest;
use crate::nats_config::RenderError;
use crate::up::Site;

const README: &str = include_str!("../../../site-files/README.md");
const LEAF_UNIT: &str = include_str!("../../../site-files/leaf.service");
const POLLER_UNIT: &str = include_str!("../../../site-files/poller.service");
const COMPOSE: &str = include_str!("../../../site-files/compose.yaml");
/// What all processes of the compose file have in common.
const PROCESS: &str = include_str!("../../../site-files/process.yaml");

/// The bundle's folder and archive. Names hold no `.`, so that no two sites share one.
pub(super) fn bundle_name(site: &Site) -> String {
    format!("bulkhead.{}.{}", site.tenant, site.site)
}

/// A poller, as the texts speak of it.
#[derive(Serialize)]
pub(super) struct PollerText {
    name: String,
    health_port: u16,
    unit: String,
    service: String,
    settings: String,
}

impl PollerText {
    pub(super) fn new(site: &Site, poller: &PollerName, health_port: u16) -> Self {
        Self {
            name: poller.to_string(),
            health_port,
            unit: format!("bulkhead-poller.{}.{}.{poller}.service", site.tenant, site.site),
            service: format!("poller-{poller}"),
            settings: format!("pollers/{poller}/poller.toml"),
        }
    }
}

/// A site, as the texts speak of it.
#[derive(Serialize)]
pub(super) struct SiteText<'a> {
    tenant: &'a str,
    site: &'a str,
    name: String,
    /// The project of the compose file, whose names hold no `.`; ours hold no `_`.
    project: String,
    folder: String,
    /// Below /var/lib.
    state: String,
    leaf_unit: String,
    leaf_port: u16,
    leaf_urls: &'a [String],
    made_at: &'a str,
    ends_at: &'a str,
    version: &'static str,
    /// Whether the device has made its keys itself.
    is_enrolled: bool,
    /// Where it renews its certificates.
    renewal_urls: &'a [String],
    process: &'static str,
    /// The same for pollers, which look after the leaf and the certificates of an enrolled machine.
    poller_process: String,
    pollers: Vec<PollerText>,
}

#[derive(Serialize)]
struct PollerUnit<'a> {
    tenant: &'a str,
    site: &'a str,
    poller: &'a str,
    folder: &'a str,
    state: &'a str,
    leaf_unit: &'a str,
    is_enrolled: bool,
}

/// Where the leaf's link is turned off and on is writable besides, and on enrolled machines where certificates are renewed.
fn poller_process(is_enrolled: bool) -> String {
    const STATE: &str = "      - {type: bind, source: ./state, target: /bundle/state}\n";
    let writable: &[&str] = if is_enrolled { &["link", "tls", "pollers"] } else { &["link"] };
    let line = |name: &&str| format!("      - {{type: bind, source: ./{name}, target: /bundle/{name}}}\n");
    let lines: String = writable.iter().map(line).collect();
    PROCESS.trim_end().replace(STATE, &format!("{STATE}{lines}"))
}

/// A word that is only itself to systemd: no specifier, variable, quote, blank or line end.
fn unit_word(text: String) -> Result<String, Error> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return Ok(text);
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("{text:?} is no word for a unit")))
}

/// A quoted YAML string that compose takes as it is: ASCII only, and no variable.
#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
fn yaml_text(text: String) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '$' => quoted.push_str("$$"),
            ' '..='~' => quoted.push(character),
            _ => quoted.push_str(&format!("\\U{:08X}", u32::from(character))),
        }
    }
    quoted.push('"');
    quoted
}

fn render(template: &str, values: impl Serialize) -> Result<String, RenderError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("unit", unit_word);
    environment.add_filter("yaml", yaml_text);
    let mut text = environment.render_str(template, minijinja::value::Serde(values)).map_err(RenderError)?;
    text.push('\n');
    Ok(text)
}

impl<'a> SiteText<'a> {
    pub(super) fn new(
        site: &'a Site,
        manifest: &'a BundleManifest,
        leaf_port: u16,
        pollers: Vec<PollerText>,
        (is_enrolled, renewal_urls): (bool, &'a [String]),
    ) -> Self {
        let (tenant, name) = (site.tenant.as_str(), site.site.as_str());
        Self {
            tenant,
            site: name,
            name: bundle_name(site),
            project: format!("bulkhead_{tenant}_{name}"),
            folder: format!("/etc/bulkhead/{tenant}/{name}"),
            state: format!("bulkhead/{tenant}/{name}"),
            leaf_unit: format!("bulkhead-leaf.{tenant}.{name}.service"),
            leaf_port,
            leaf_urls: &manifest.leaf_urls,
            made_at: &manifest.made,
            ends_at: &manifest.ends,
            version: env!("CARGO_PKG_VERSION"),
            is_enrolled,
            renewal_urls: if is_enrolled { renewal_urls } else { &[] },
            process: PROCESS.trim_end(),
            poller_process: poller_process(is_enrolled),
            pollers,
        }
    }

    /// Every text, with its path in the bundle.
    ///
    /// # Errors
    /// When a template and the values do not fit.
    pub(super) fn render(&self) -> Result<Vec<(PathBuf, String)>, RenderError> {
        let units = PathBuf::from("systemd");
        let mut texts = vec![
            ("README.md".into(), render(README, self)?),
            ("compose.yaml".into(), render(COMPOSE, self)?),
            (units.join(&self.leaf_unit), render(LEAF_UNIT, self)?),
        ];
        for poller in &self.pollers {
            let values = PollerUnit {
                tenant: self.tenant,
                site: self.site,
                poller: &poller.name,
                folder: &self.folder,
                state: &self.state,
                leaf_unit: &self.leaf_unit,
                is_enrolled: self.is_enrolled,
            };
            texts.push((units.join(&poller.unit), render(POLLER_UNIT, values)?));
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_one_yaml_string(text in any::<String>()) {
            let document = format!("first: {}\nlast: 1\n", yaml_text(text.clone()));
            let parsed: serde_yaml_ng::Value = serde_yaml_ng::from_str(&document).unwrap();
            prop_assert_eq!(parsed.as_mapping().unwrap().len(), 2);
            prop_assert_eq!(parsed["first"].as_str().unwrap(), text.replace('$', "$$"));
            prop_assert!(document.is_ascii());
        }

        #[test]
        fn a_word_for_a_unit_means_nothing_to_systemd(text in any::<String>()) {
            if let Ok(word) = unit_word(text.clone()) {
                prop_assert_eq!(&word, &text);
                prop_assert!(!word.contains(['%', '$', '"', '\'', '\\', ' ', '\n', ';', '#']));
            }
        }
    }

    #[test]
    fn what_would_be_a_specifier_or_a_second_line_is_refused() {
        for bad in ["", "%n", "a b", "a\nUser=root", "$HOME", "\"", "a;b", "ä"] {
            assert!(unit_word(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(unit_word("acme-corp/oslo.service".to_owned()).is_ok());
    }
}
