//! The settings of the poller: read here and nowhere else, checked whole, every problem reported at once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::LeaseClass;
use bulkhead_bus::payload::RESULTS_PER_BATCH_MAX;
use bulkhead_bus::payload::{LABEL_BYTES_MOST, LABELS_MOST};
use bulkhead_checks::{Check, Rules, read_settings};
use bulkhead_runtime::{BusSettings, Chain, LogFormat, SettingsError, check_filter, client_config, load_settings};
use ipnet::IpNet;
use serde::Deserialize;

use crate::batch::Identity;
use crate::forward::ForwarderSettings;
use crate::keeper::KeeperSettings;
use crate::key::BatchSigner;
use crate::renewal::RenewalSettings;
use crate::reread::Source;

const DEFAULTS: &str = include_str!("../config.default.toml");
const PREFIX: &str = "BULKHEAD_POLLER_";

const LINGER_MS: RangeInclusive<u64> = 1..=60_000;
const SPOOL_RESULTS: RangeInclusive<usize> = 1_000..=10_000_000;
const CAPACITY: RangeInclusive<u32> = 1..=1_024;
const CHECKS_MOST: RangeInclusive<u32> = 0..=100_000;
const CHECKS_AT_ONCE: RangeInclusive<usize> = 1..=10_000;
/// No more than the leaf's consumer hands out unacknowledged.
const WINDOW: RangeInclusive<usize> = 1..=500;
const STUCK_AFTER_S: RangeInclusive<u64> = 1..=86_400;
const BACKFILL_AFTER_S: RangeInclusive<u64> = 1..=86_400;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    log_format: LogFormat,
    log_filter: String,
    health_listen: Option<SocketAddr>,
    state_dir: PathBuf,
    batch_key_file: PathBuf,
    capacity: u32,
    identity: RawIdentity,
    lease: RawLease,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    rules: RawRules,
    leaf: Option<BusSettings>,
    forwarder: RawForwarder,
    keeper: RawKeeper,
    renewal: Option<RawRenewal>,
    batch: RawBatch,
    spool: RawSpool,
    limits: RawLimits,
    #[serde(default)]
    checks: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    tenant: String,
    site: String,
    poller: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLease {
    class: LeaseClass,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRules {
    deny: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawForwarder {
    enabled: bool,
    window: usize,
    backfill_after_s: u64,
    leaf: Option<BusSettings>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeeper {
    stuck_after_s: u64,
    link_file: Option<PathBuf>,
    leaf: Option<BusSettings>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRenewal {
    urls: Vec<String>,
    folder: PathBuf,
    proxy: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBatch {
    results_most: usize,
    linger_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpool {
    results_most: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    checks_at_once: usize,
    checks_most: u32,
}

struct RawMember {
    labels: BTreeMap<String, String>,
    capacity: u32,
    checks_most: u32,
}

/// How results become batches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchSettings {
    pub(crate) results_most: usize,
    pub(crate) linger: Duration,
}

/// What this poller says of itself when it registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberSettings {
    pub(crate) class: LeaseClass,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) capacity: u32,
    pub(crate) checks_most: u32,
}

/// Settings that have been checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub log_format: LogFormat,
    pub log_filter: String,
    pub(crate) health_listen: Option<SocketAddr>,
    pub(crate) state_dir: PathBuf,
    pub(crate) batch_key: Arc<BatchSigner>,
    pub(crate) identity: Identity,
    pub(crate) leaf: BusSettings,
    pub(crate) forwarder: Option<ForwarderSettings>,
    pub(crate) keeper: Option<KeeperSettings>,
    pub(crate) renewal: Option<RenewalSettings>,
    pub(crate) batch: BatchSettings,
    pub(crate) spool_results_most: usize,
    pub(crate) checks_at_once: usize,
    pub(crate) member: MemberSettings,
    pub(crate) rules: Rules,
    pub(crate) checks: Vec<Check>,
    pub(crate) source: Source,
}

struct Problems(Vec<String>);

impl Problems {
    fn keep<T, E: Display>(&mut self, key: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.0.push(format!("  {key}: {error}"))).ok()
    }

    fn require<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        self.keep(key, value.ok_or("is missing"))
    }

    fn check_range<T: PartialOrd + Display>(&mut self, key: &str, value: T, range: &RangeInclusive<T>) {
        if !range.contains(&value) {
            self.0.push(format!("  {key}: {value} is not between {} and {}", range.start(), range.end()));
        }
    }

    fn check_connection(&mut self, key: &str, settings: &BusSettings) {
        if settings.urls.is_empty() {
            self.0.push(format!("  {key}.urls: [] names no server: write for example [\"tls://127.0.0.1:4222\"]"));
        }
        for url in settings.urls.iter().filter(|url| !url.starts_with("tls://")) {
            self.0.push(format!("  {key}.urls: {url:?} does not begin with tls://: the leaf is asked over TLS only"));
        }
        let files = client_config(&settings.tls).map_err(|error| Chain(&error).to_string());
        self.keep(&format!("{key}.tls"), files);
    }

    fn take_identity(&mut self, raw: &RawIdentity) -> Option<Identity> {
        let tenant = self.keep("identity.tenant", raw.tenant.parse());
        let site = self.keep("identity.site", raw.site.parse());
        let poller = self.keep("identity.poller", raw.poller.parse());
        Some(Identity { tenant: tenant?, site: site?, poller: poller? })
    }

    fn take_forwarder(&mut self, raw: RawForwarder) -> Option<ForwarderSettings> {
        self.check_range("forwarder.window", raw.window, &WINDOW);
        self.check_range("forwarder.backfill_after_s", raw.backfill_after_s, &BACKFILL_AFTER_S);
        if !raw.enabled {
            return None;
        }
        let leaf = self.require("forwarder.leaf", raw.leaf)?;
        self.check_connection("forwarder.leaf", &leaf);
        let backfill_after = Duration::from_secs(raw.backfill_after_s);
        Some(ForwarderSettings { leaf, window: raw.window, backfill_after })
    }

    fn take_keeper(&mut self, raw: RawKeeper) -> Option<KeeperSettings> {
        self.check_range("keeper.stuck_after_s", raw.stuck_after_s, &STUCK_AFTER_S);
        let leaf = raw.leaf?;
        self.check_connection("keeper.leaf", &leaf);
        let link_file = self.require("keeper.link_file", raw.link_file)?;
        Some(KeeperSettings { leaf, link_file, stuck_after: Duration::from_secs(raw.stuck_after_s) })
    }

    fn take_renewal(&mut self, raw: RawRenewal, has_keeper: bool) -> RenewalSettings {
        if !has_keeper {
            self.0.push(
                "  keeper.leaf: is missing: without it nobody tells the leaf that certificates are new".to_owned(),
            );
        }
        if raw.urls.is_empty() {
            self.0.push("  renewal.urls: [] names nobody: write for example [\"https://hub.example:8443\"]".to_owned());
        }
        for url in raw.urls.iter().filter(|url| !url.starts_with("https://")) {
            self.0.push(format!("  renewal.urls: {url:?} does not begin with https://"));
        }
        RenewalSettings { urls: raw.urls, folder: raw.folder, proxy: raw.proxy }
    }

    fn take_rules(&mut self, raw: &RawRules) -> Rules {
        let networks = raw.deny.iter().filter_map(|text| {
            let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
            let rule = format!("{text:?} is not a network: write for example \"10.0.0.0/8\" or \"2001:db8::/32\"");
            self.keep("rules.deny", text.parse::<IpNet>().or_else(|_| address()).map_err(|_| rule))
        });
        Rules::denying(networks.collect())
    }

    fn take_member(&mut self, class: LeaseClass, raw: RawMember) -> MemberSettings {
        let RawMember { labels, capacity, checks_most } = raw;
        self.check_range("capacity", capacity, &CAPACITY);
        self.check_range("limits.checks_most", checks_most, &CHECKS_MOST);
        if labels.len() > LABELS_MOST {
            self.0.push(format!("  labels: {} are more than {LABELS_MOST}", labels.len()));
        }
        let is_short = |text: &str| (1..=LABEL_BYTES_MOST).contains(&text.len());
        for (name, value) in labels.iter().filter(|(name, value)| !is_short(name) || !is_short(value)) {
            self.0.push(format!("  labels: {name:?} = {value:?} is not text of 1 to {LABEL_BYTES_MOST} bytes each"));
        }
        MemberSettings { class, labels, capacity, checks_most }
    }

    fn take_signer(&mut self, path: &Path) -> Option<Arc<BatchSigner>> {
        if path.as_os_str().is_empty() {
            return self.require("batch_key_file", None);
        }
        let read = BatchSigner::read(path).map_err(|error| Chain(&error).to_string());
        self.keep("batch_key_file", read).map(Arc::new)
    }
}

impl Config {
    /// Defaults, then `file`, then the environment.
    ///
    /// # Errors
    /// When anything is wrong; the error lists all of it.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let source = Source::of(file, || load_settings(DEFAULTS, file, PREFIX))?;
        Self::check(load_settings(DEFAULTS, file, PREFIX)?, source)
    }

    fn check(raw: RawConfig, source: Source) -> Result<Self, SettingsError> {
        let mut problems = Problems(Vec::new());
        problems.0.extend(check_filter(&raw.log_filter).err().map(|error| format!("  {error}")));
        if raw.state_dir.as_os_str().is_empty() {
            problems.require::<()>("state_dir", None);
        }
        let batch_key = problems.take_signer(&raw.batch_key_file);
        let identity = problems.take_identity(&raw.identity);
        let leaf = problems.require("leaf", raw.leaf);
        if let Some(leaf) = &leaf {
            problems.check_connection("leaf", leaf);
        }
        let forwarder = problems.take_forwarder(raw.forwarder);
        let has_keeper = raw.keeper.leaf.is_some();
        let keeper = problems.take_keeper(raw.keeper);
        let renewal = raw.renewal.map(|raw| problems.take_renewal(raw, has_keeper));
        problems.check_range("batch.results_most", raw.batch.results_most, &(1..=RESULTS_PER_BATCH_MAX));
        problems.check_range("batch.linger_ms", raw.batch.linger_ms, &LINGER_MS);
        problems.check_range("spool.results_most", raw.spool.results_most, &SPOOL_RESULTS);
        problems.check_range("limits.checks_at_once", raw.limits.checks_at_once, &CHECKS_AT_ONCE);
        let rules = problems.take_rules(&raw.rules);
        let of_member = RawMember { labels: raw.labels, capacity: raw.capacity, checks_most: raw.limits.checks_most };
        let member = problems.take_member(raw.lease.class, of_member);
        let checks = read_settings(&raw.checks, &mut problems.0);
        match (batch_key, identity, leaf) {
            (Some(batch_key), Some(identity), Some(leaf)) if problems.0.is_empty() => Ok(Self {
                log_format: raw.log_format,
                log_filter: raw.log_filter,
                health_listen: raw.health_listen,
                state_dir: raw.state_dir,
                batch_key,
                identity,
                leaf,
                forwarder,
                keeper,
                renewal,
                batch: BatchSettings {
                    results_most: raw.batch.results_most,
                    linger: Duration::from_millis(raw.batch.linger_ms),
                },
                spool_results_most: raw.spool.results_most,
                checks_at_once: raw.limits.checks_at_once,
                member,
                rules,
                checks,
                source,
            }),
            _ => Err(SettingsError(problems.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::os::unix::fs::PermissionsExt;

    /// Files that valid settings name, and such settings.
    fn valid(folder: &Path) -> String {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["p1".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.join("c.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("c.key"), key.serialize_pem()).unwrap();
        let seed = folder.join("batch.key");
        std::fs::write(&seed, nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
        std::fs::set_permissions(&seed, std::fs::Permissions::from_mode(0o600)).unwrap();
        let at = folder.display();
        let leaf = |inbox: &str| {
            format!(
                "urls = [\"tls://127.0.0.1:4222\"]\ninbox_prefix = \"_INBOX_oslo.{inbox}\"\n\
                 tls = {{ ca_file = \"{at}/c.pem\", cert_file = \"{at}/c.pem\", key_file = \"{at}/c.key\" }}\n"
            )
        };
        format!(
            "state_dir = \"{at}/state\"\nbatch_key_file = \"{at}/batch.key\"\n\
             [identity]\ntenant = \"acme-corp\"\nsite = \"oslo\"\npoller = \"p1\"\n\
             [leaf]\n{}[forwarder.leaf]\n{}\
             [[checks]]\nname = \"hub\"\nkind = \"tcp\"\ntarget = \"127.0.0.1:4222\"\ninterval_s = 10\ntimeout_ms = 3000\n",
            leaf("p1"),
            leaf("fwd")
        )
    }

    fn load(folder: &Path, text: &str) -> Result<Config, SettingsError> {
        let path = folder.join("poller.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path))
    }

    fn check(change: (&str, &str), expected: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let text = valid(folder.path());
        assert!(text.contains(change.0), "{:?} is not in the settings", change.0);
        let lines = load(folder.path(), &text.replace(change.0, change.1)).unwrap_err().0;
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.contains(expected), "{line:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn valid_settings_are_taken_over_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let config = load(folder.path(), &valid(folder.path())).unwrap();
        assert_eq!(config.identity.poller.as_str(), "p1");
        assert_eq!((config.batch.results_most, config.batch.linger), (100, Duration::from_secs(1)));
        assert_eq!(config.forwarder.unwrap().window, 256);
        assert_eq!(config.checks.len(), 1);
        assert_eq!(config.rules, Rules::default(), "the list that is shown is the one that holds");
        let seed = std::fs::read_to_string(folder.path().join("batch.key")).unwrap();
        assert!(!format!("{:?}", config.batch_key).contains(&seed), "the seed is never shown");
    }

    #[test]
    fn the_defaults_alone_name_everything_that_is_missing() {
        let lines = Config::load(None).unwrap_err().0.join("\n");
        for key in [
            "state_dir",
            "batch_key_file",
            "identity.tenant",
            "identity.site",
            "identity.poller",
            "leaf",
            "forwarder.leaf",
        ] {
            assert!(lines.contains(&format!("  {key}: ")), "{key}: {lines}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_rule() {
        check(("acme-corp", "Acme Corp"), &["identity.tenant: tenant slug \"Acme Corp\" is not valid"]);
        check(("acme-corp", "core"), &["is reserved for the platform"]);
        check(("\"p1\"", "\"fwd\""), &["identity.poller: poller name \"fwd\" is reserved"]);
        check(("[identity]", "[idendity]"), &["idendity"]);
        check(("[identity]", "batch.linger_ms = 0\n[identity]"), &["batch.linger_ms: 0 is not between 1 and 60000"]);
        check(("[identity]", "batch.results_most = 1001\n[identity]"), &["1001 is not between 1 and 1000"]);
        check(("[identity]", "spool.results_most = 0\n[identity]"), &["spool.results_most: 0"]);
        check(("[identity]", "limits.checks_at_once = 0\n[identity]"), &["limits.checks_at_once: 0"]);
        check(
            ("[identity]", "log_filter = \"bulkhead=loud\"\n[identity]"),
            &["log_filter \"bulkhead=loud\" is not a filter"],
        );
        check(("[identity]", "capacity = 0\n[identity]"), &["capacity: 0 is not between 1 and 1024"]);
        check(("[identity]", "labels = { zone = \"\" }\n[identity]"), &["labels: \"zone\" = \"\" is not text"]);
        check(
            ("[identity]", "rules.deny = [\"10.0.0.0/33\"]\n[identity]"),
            &["rules.deny: \"10.0.0.0/33\" is not a network"],
        );
        check(("batch.key", "none.key"), &["batch_key_file: read batch key file"]);
        check(("tls://127.0.0.1:4222", "nats://h:1"), &["leaf.urls: \"nats://h:1\" does not", "forwarder.leaf.urls:"]);
        check(("c.key\"", "none\""), &["leaf.tls: read key file", "forwarder.leaf.tls: read key file"]);
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let text = valid(folder.path()).replace("oslo\"", "*\"").replace("127.0.0.1:4222\"\n", "x\"\n");
        let text = text.replace("timeout_ms = 3000", "timeout_ms = 30000");
        let lines = load(folder.path(), &text).unwrap_err().0;
        assert_eq!(lines.len(), 3, "{lines:#?}");
    }

    #[test]
    fn a_poller_without_a_forwarder_needs_no_second_connection() {
        let folder = tempfile::tempdir().unwrap();
        let text = valid(folder.path());
        let (head, rest) = text.split_once("[forwarder.leaf]").unwrap();
        let checks = &rest[rest.find("[[checks]]").unwrap()..];
        let text = format!("{head}[forwarder]\nenabled = false\n{checks}");
        assert!(load(folder.path(), &text).unwrap().forwarder.is_none());
    }
}
