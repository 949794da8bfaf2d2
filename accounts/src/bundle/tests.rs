use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use bulkhead_bus::Role;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::certificates::{Authority, TrustDomain};
use crate::operator::OperatorStore;
use crate::plan::{Plan, PlanName};
use crate::render::tenant_account;
use crate::up::Layout;

/// A platform with one tenant, without servers.
fn platform() -> (TempDir, Platform) {
    let home = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let layout = Layout::new(home.path().to_owned());
    let operator = OperatorStore::open(layout.operator(), now.unix_timestamp()).unwrap();
    let authority = Authority::new(layout.authority(), TrustDomain::default());
    authority.ensure_roots(now).unwrap();
    authority.ensure_tenant(&"acme-corp".parse().unwrap(), now).unwrap();
    let core = SigningKey::generate(KeyKind::Account);
    let render = |own: &str, keys: &[_]| tenant_account(&Plan::of(PlanName::Free), own, core.public(), keys);
    operator.ensure_account("acme-corp", &Role::TENANT, now.unix_timestamp(), render).unwrap();
    (home, Platform { layout, operator, authority, hub_urls: vec![], now })
}

fn urls() -> Vec<String> {
    ["tls://hub-1.example.com:7422", "tls://[2001:db8::1]:7422"].map(str::to_owned).to_vec()
}

fn make(platform: &Platform, pollers: &[&str], options: &BundleOptions) -> Result<SiteBundle, BundleError> {
    let pollers: Vec<PollerName> = pollers.iter().map(|poller| poller.parse().unwrap()).collect();
    let (tenant, site) = ("acme-corp".parse().unwrap(), "oslo".parse().unwrap());
    make_site_bundle(platform, &urls(), &tenant, &site, &pollers, options)
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn text_of(bundle: &SiteBundle, path: &str) -> String {
    let file = bundle.files.files().iter().find(|file| file.path == Path::new(path));
    String::from_utf8(file.unwrap_or_else(|| panic!("no {path}")).bytes.to_vec()).unwrap()
}

#[test]
fn a_bundle_is_private_has_sums_and_leaves_nothing_but_batch_keys_behind() {
    let (home, platform) = platform();
    let bundle = make(&platform, &["p1", "p2"], &BundleOptions::default()).unwrap();
    let folder = home.path().join("out");
    bundle.files.write_folder(&folder).unwrap();
    for file in bundle.files.files() {
        let name = file.path.to_str().unwrap();
        let mode = std::fs::metadata(folder.join(&file.path)).unwrap().permissions().mode() & 0o777;
        let is_secret = [".key", ".nk", ".creds"].iter().any(|end| name.ends_with(end));
        assert_eq!((file.is_secret, mode), (is_secret, if is_secret { 0o600 } else { 0o644 }), "{name}");
    }
    for path in ["", "tls", "pollers", "pollers/p1", "systemd"] {
        let mode = std::fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{path}");
    }
    assert_eq!(run(&folder, "sha256sum", &["--check", "--strict", "--quiet", "SHA256SUMS"]), (true, String::new()));
    std::fs::write(folder.join("leaf.conf"), "# edited").unwrap();
    let (is_whole, said) = run(&folder, "sha256sum", &["--check", "--strict", "--quiet", "SHA256SUMS"]);
    assert!(!is_whole && said.contains("leaf.conf"), "{said}");
    let names: BTreeSet<String> = std::fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["nsc", "out", "pki", "sites-issued"].map(str::to_owned).into());
    let kept = home.path().join("sites-issued/acme-corp/oslo/p1.nk");
    assert_eq!(std::fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_folder_is_replaced_whole_when_it_is_a_bundle_and_never_otherwise() {
    let (home, platform) = platform();
    let folder = home.path().join("out");
    let bundle = make(&platform, &["p1", "p2"], &BundleOptions::default()).unwrap();
    bundle.files.write_folder(&folder).unwrap();
    // What a site that runs in this folder has stored and nobody else has yet.
    make_folder(&folder.join("state/js")).unwrap();
    std::fs::write(folder.join("state/js/results"), "undelivered").unwrap();
    let smaller = make(&platform, &["p1"], &BundleOptions::default()).unwrap();
    smaller.files.write_folder(&folder).unwrap();
    assert!(folder.join("pollers/p1").exists() && !folder.join("pollers/p2").exists());
    assert_eq!(std::fs::read_to_string(folder.join("state/js/results")).unwrap(), "undelivered");
    let other = home.path().join("documents");
    make_folder(&other).unwrap();
    std::fs::write(other.join("letter"), "mine").unwrap();
    let error = smaller.files.write_folder(&other).unwrap_err().to_string();
    assert!(error.contains("not a bundle"), "{error}");
    assert_eq!(std::fs::read_to_string(other.join("letter")).unwrap(), "mine");
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".bundle-")), "{left:?}");
}

#[test]
fn the_same_bundle_makes_the_same_archive_and_tar_unpacks_it_as_the_folder() {
    let (home, platform) = platform();
    let bundle = make(&platform, &["p1"], &BundleOptions::default()).unwrap();
    let (one, two) = (home.path().join("one.tar.gz"), home.path().join("two.tar.gz"));
    let digest = bundle.files.write_archive(&one).unwrap();
    assert_eq!(bundle.files.write_archive(&two).unwrap(), digest);
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    assert_eq!(std::fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o600);
    let (_, said) = run(home.path(), "sha256sum", &["one.tar.gz"]);
    assert!(said.starts_with(&digest), "{said}");
    assert!(run(home.path(), "tar", &["-xzf", "one.tar.gz"]).0);
    bundle.files.write_folder(&home.path().join("folder")).unwrap();
    assert_eq!(run(home.path(), "diff", &["-r", "folder", bundle.files.name()]), (true, String::new()));
    assert!(run(&home.path().join(bundle.files.name()), "sha256sum", &["-c", "--quiet", "SHA256SUMS"]).0);
}

#[test]
fn a_poller_keeps_its_batch_key_until_a_new_one_is_asked_for() {
    let (_home, platform) = platform();
    let keys = |options: &BundleOptions| {
        let bundle = make(&platform, &["p1", "p2"], options).unwrap();
        let keys: Vec<String> = bundle.manifest.pollers.iter().map(|poller| poller.batch_key.to_string()).collect();
        (keys, bundle.manifest.leaf.certificate.serial)
    };
    let (first, first_serial) = keys(&BundleOptions::default());
    let (second, second_serial) = keys(&BundleOptions::default());
    assert_eq!(first, second);
    assert_ne!(first_serial, second_serial, "certificates are issued anew");
    let new_keys = BTreeSet::from(["p2".parse().unwrap()]);
    let (third, _) = keys(&BundleOptions { new_keys, ..BundleOptions::default() });
    assert_eq!(third[0], first[0]);
    assert_ne!(third[1], first[1]);
    assert_eq!(keys(&BundleOptions::default()).0, third);
}

#[test]
fn the_manifest_says_what_the_files_are_and_holds_no_secret() {
    let (home, platform) = platform();
    let bundle = make(&platform, &["p1"], &BundleOptions::default()).unwrap();
    bundle.files.write_folder(&home.path().join("out")).unwrap();
    let manifest = &bundle.manifest;
    let certificate = home.path().join("out/pollers/p1/poller.crt");
    let (_, said) = run(
        home.path(),
        "openssl",
        &["x509", "-noout", "-fingerprint", "-sha256", "-serial", "-in", certificate.to_str().unwrap()],
    );
    let said = said.replace(':', "").to_lowercase();
    let facts = &manifest.pollers[0].certificate;
    assert!(said.contains(&facts.fingerprint) && said.contains(&format!("serial={}", facts.serial)), "{said}");
    let days = (manifest.ends_at - platform.now.unix_timestamp()) / 86_400;
    assert_eq!(days, 90);
    let json: serde_json::Value = serde_json::from_str(&text_of(&bundle, "MANIFEST.json")).unwrap();
    assert_eq!(json["leaf"]["certificate"]["serial"], manifest.leaf.certificate.serial);
    assert!(text_of(&bundle, "README.md").contains(&manifest.ends));
    for file in bundle.files.files().iter().filter(|file| !file.is_secret) {
        let text = String::from_utf8_lossy(&file.bytes);
        for secret in ["PRIVATE KEY", "SEED", "SUA", "SU"] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric());
            let is_seed = |word: &str| word.starts_with(secret) && word.len() == 58;
            assert!(!text.contains("PRIVATE KEY") && !words.clone().any(is_seed), "{}", file.path.display());
        }
    }
}

#[test]
fn a_wrong_request_is_refused_with_the_way_out_before_anything_is_written() {
    let (home, platform) = platform();
    let (tenant, site) = ("acme-corp".parse().unwrap(), "oslo".parse().unwrap());
    let poller: PollerName = "p1".parse().unwrap();
    let plain = BundleOptions::default();
    let new_keys = BTreeSet::from(["p9".parse().unwrap()]);
    let stranger = BundleOptions { new_keys, ..plain.clone() };
    let late = BundleOptions { health_port: 65_535, ..plain.clone() };
    let (one, twice) = (vec![poller.clone()], vec![poller.clone(), poller.clone()]);
    let two = vec![poller, "p2".parse().unwrap()];
    let bad_url = |url: &str| vec![url.to_owned()];
    for (urls, pollers, options, expected) in [
        (urls(), &vec![], &plain, "name at least one"),
        (urls(), &twice, &plain, "named twice"),
        (urls(), &one, &stranger, "name it among the pollers"),
        (urls(), &two, &late, "choose a lower first one"),
        (vec![], &one, &plain, "tls://hub.example.com:7422"),
        (bad_url("nats://hub:7422"), &one, &plain, "write tls://host:port"),
        (bad_url("tls://hub:7422\"]\nport: 1"), &one, &plain, "write tls://host:port"),
        (bad_url("tls://user:password@hub:7422"), &one, &plain, "write tls://host:port"),
        (bad_url("tls://hub:0"), &one, &plain, "write tls://host:port"),
    ] {
        let refused = make_site_bundle(&platform, &urls, &tenant, &site, pollers, options);
        let error = refused.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(!home.path().join("sites-issued").exists());
    let unknown = make_site_bundle(&platform, &urls(), &"nobody".parse().unwrap(), &site, &one, &plain);
    assert!(unknown.is_err());
}

/// Every format is read back by somebody else: TOML and YAML readers, systemd; the server reads its file in tests/bundle.rs.
#[test]
fn what_is_rendered_is_read_by_the_programs_that_it_is_for() {
    let (home, platform) = platform();
    let targets = vec!["http://example.test/?q='$HOME'%n".parse().unwrap()];
    let bundle = make(&platform, &["p1", "p2"], &BundleOptions { targets, ..BundleOptions::default() }).unwrap();
    let folder = home.path().join("out");
    bundle.files.write_folder(&folder).unwrap();
    let settings: toml::Table = toml::from_str(&text_of(&bundle, "pollers/p2/poller.toml")).unwrap();
    let targets: Vec<&str> =
        settings["checks"].as_array().unwrap().iter().map(|check| check["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["127.0.0.1", "127.0.0.1:4222", "http://example.test/?q='$HOME'%n"]);
    let compose: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text_of(&bundle, "compose.yaml")).unwrap();
    let services: Vec<&str> =
        compose["services"].as_mapping().unwrap().keys().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(services, ["leaf", "poller-p1", "poller-p2"]);
    assert_eq!(compose["services"]["poller-p2"]["entrypoint"][2], "pollers/p2/poller.toml");
    check_units(&folder.join("systemd"));
}

/// Complaints about programs and folders that this machine does not have are none about the units.
fn check_units(folder: &Path) {
    let units: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(units.len(), 3);
    if !run(folder, "sh", &["-c", "command -v systemd-analyze"]).0 {
        return;
    }
    let verify = |unit: &str| {
        let (_, said) = run(folder, "systemd-analyze", &["verify", "--man=no", "--recursive-errors=no", unit]);
        let ours = said.lines().filter(|line| line.contains("bulkhead-") && !line.contains("is not executable"));
        ours.map(str::to_owned).collect::<Vec<_>>()
    };
    for unit in &units {
        let complaints = verify(unit);
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
    let broken =
        std::fs::read_to_string(folder.join(&units[0])).unwrap().replace("StateDirectory=", "StateDirectory=/");
    std::fs::write(folder.join("bulkhead-broken.service"), broken).unwrap();
    assert!(!verify("bulkhead-broken.service").is_empty(), "the control passed");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    /// Whatever the names and URLs are: they are refused, or they are in every file exactly where they belong.
    #[test]
    fn names_and_urls_do_not_break_out(
        site in "[a-z0-9][a-z0-9-]{0,38}", poller in "[a-z0-9][a-z0-9-]{0,38}", host in "([a-z0-9]{1,12}|[a-z0-9.-]{1,20}|[a-zA-Z0-9.\\[\\]:%$\"\\\\ \\n-]{1,20})",
    ) {
        let (Ok(site), Ok(poller)) = (site.parse::<SiteName>(), poller.parse::<PollerName>()) else { return Ok(()) };
        let (_home, platform) = platform();
        let url = format!("tls://{host}:7422");
        let urls = [url.clone(), "tls://hub.example.com:7422".to_owned()];
        let tenant = "acme-corp".parse().unwrap();
        let options = BundleOptions::default();
        let Ok(bundle) = make_site_bundle(&platform, &urls, &tenant, &site, std::slice::from_ref(&poller), &options) else {
            prop_assert!(!is_leaf_url(&url));
            return Ok(());
        };
        let settings: toml::Table = toml::from_str(&text_of(&bundle, &format!("pollers/{poller}/poller.toml"))).unwrap();
        prop_assert_eq!(settings["identity"]["poller"].as_str(), Some(poller.as_str()));
        let compose: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text_of(&bundle, "compose.yaml")).unwrap();
        prop_assert_eq!(compose["services"].as_mapping().unwrap().len(), 2);
        prop_assert_eq!(compose.as_mapping().unwrap().len(), 2);
        let template = include_str!("../../../site-files/poller.service");
        // A machine that has enrolled gets these lines besides.
        let (above, rest) = template.split_once("{%- if is_enrolled %}\n").unwrap();
        let (_, below) = rest.split_once("{%- endif %}\n").unwrap();
        let lines = above.lines().count() + below.lines().count();
        let unit = text_of(&bundle, &format!("systemd/bulkhead-poller.acme-corp.{site}.{poller}.service"));
        prop_assert_eq!(unit.lines().count(), lines);
        let leaf = text_of(&bundle, "leaf.conf");
        let quoted = serde_json::to_string(&url).unwrap();
        prop_assert_eq!(leaf.matches(&quoted).count(), 1);
    }
}
