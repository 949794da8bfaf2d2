//! Which package may depend on which, and which must not be there at all.

use std::path::Path;

use serde_json::Value;

use super::Finding;

const BUS: &str = "bulkhead-bus";
const CHECKS: &str = "bulkhead-checks";
const CLAIMS: &str = "bulkhead-claims";
const IDENTITY: &str = "bulkhead-identity";
const STORE: &str = "bulkhead-store";
const RUNTIME: &str = "bulkhead-runtime";
const DIRECTORY: &str = "bulkhead-directory";
const TESTKIT: &str = "bulkhead-testkit";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Dev,
    Build,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dependency {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// One package, ours or somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) licence: Option<String>,
    /// From the root, for packages of this workspace.
    pub(super) manifest: Option<String>,
    /// Only those on packages of this workspace.
    pub(super) dependencies: Vec<Dependency>,
}

/// Reads what `cargo metadata` printed.
pub(super) fn read_packages(metadata: &Value, root: &Path) -> Result<Vec<Package>, String> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    packages.iter().map(|package| read_package(package, root)).collect()
}

fn read_package(package: &Value, root: &Path) -> Result<Package, String> {
    let text = |key: &str| package[key].as_str().map(str::to_owned);
    let name = text("name").ok_or("a package in cargo metadata has no name")?;
    let manifest = text("manifest_path").ok_or(format!("package {name} has no manifest_path"))?;
    let is_ours = package["source"].is_null();
    let relative = Path::new(&manifest).strip_prefix(root).ok().and_then(Path::to_str).map(str::to_owned);
    let listed = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = listed.iter().filter(|dependency| dependency["path"].is_string());
    Ok(Package {
        version: text("version").unwrap_or_default(),
        licence: text("license"),
        manifest: relative.filter(|_| is_ours),
        dependencies: ours.map(read_dependency).collect::<Result<_, _>>()?,
        name,
    })
}

fn read_dependency(dependency: &Value) -> Result<Dependency, String> {
    let name = dependency["name"].as_str().ok_or("a dependency in cargo metadata has no name")?.to_owned();
    let kind = match dependency["kind"].as_str() {
        None => Kind::Normal,
        Some("dev") => Kind::Dev,
        Some("build") => Kind::Build,
        Some(other) => return Err(format!("dependency {name} is of the unknown kind {other}")),
    };
    Ok(Dependency { name, kind })
}

/// What a package of ours may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Words,
    Ground,
    Checks,
    Identity,
    Directory,
    Process,
    Testing,
    Alone,
}

fn layer_of(manifest: &str) -> Option<Layer> {
    match manifest {
        "crates/bus/Cargo.toml" => Some(Layer::Words),
        "crates/checks/Cargo.toml" => Some(Layer::Checks),
        "crates/identity/Cargo.toml" => Some(Layer::Identity),
        "crates/directory/Cargo.toml" => Some(Layer::Directory),
        "crates/claims/Cargo.toml" | "crates/store/Cargo.toml" | "crates/runtime/Cargo.toml" => Some(Layer::Ground),
        "accounts/Cargo.toml" => Some(Layer::Process),
        "crates/testkit/Cargo.toml" | "tests/Cargo.toml" => Some(Layer::Testing),
        "xtask/Cargo.toml" => Some(Layer::Alone),
        other => other.starts_with("services/").then_some(Layer::Process),
    }
}

/// Why `layer` may not depend so; `None` when it may.
fn refusal(layer: Layer, dependency: &Dependency) -> Option<&'static str> {
    let name = dependency.name.as_str();
    match (layer, dependency.kind) {
        (Layer::Testing, Kind::Normal | Kind::Dev) => None,
        (Layer::Words, _) => Some("the words of the bus depend on no other package of ours"),
        (Layer::Alone, _) => Some("xtask depends on no other package of ours"),
        (_, Kind::Build) => Some("no build script needs a package of ours"),
        (Layer::Ground | Layer::Checks | Layer::Identity | Layer::Directory | Layer::Process, Kind::Dev)
            if name == TESTKIT =>
        {
            None
        }
        (Layer::Ground | Layer::Checks | Layer::Identity | Layer::Directory | Layer::Process, Kind::Normal)
            if name == TESTKIT =>
        {
            Some("testkit is for dev-dependencies")
        }
        (Layer::Ground, Kind::Normal | Kind::Dev) => {
            (name != BUS).then_some("claims, store and runtime stand on bus and on nothing else of ours")
        }
        (Layer::Checks, Kind::Normal | Kind::Dev) => {
            (![BUS, RUNTIME].contains(&name)).then_some("checks stand on bus and runtime and on nothing else of ours")
        }
        (Layer::Identity, Kind::Normal | Kind::Dev) => {
            (![BUS, CLAIMS].contains(&name)).then_some("identity stands on bus and claims and on nothing else of ours")
        }
        (Layer::Directory, Kind::Normal | Kind::Dev) => (![BUS, STORE, RUNTIME].contains(&name))
            .then_some("directory stands on bus, store and runtime and on nothing else of ours"),
        (Layer::Process, Kind::Normal | Kind::Dev) => {
            let is_allowed = [BUS, CHECKS, CLAIMS, DIRECTORY, IDENTITY, STORE, RUNTIME].contains(&name);
            (!is_allowed).then_some(
                "services and accounts stand on bus, checks, claims, directory, identity, store and runtime, never on each other",
            )
        }
    }
}

pub(super) fn check_direction(packages: &[Package]) -> Vec<Finding> {
    const RULE: &str = "direction";
    let mut findings = Vec::new();
    for package in packages {
        let Some(manifest) = &package.manifest else { continue };
        let Some(layer) = layer_of(manifest) else {
            let message =
                format!("package {} has no place yet: give it one in xtask/src/tidy/packages.rs", package.name);
            findings.push(Finding::new(manifest, 1, RULE, message));
            continue;
        };
        for dependency in &package.dependencies {
            if let Some(why) = refusal(layer, dependency) {
                let message = format!("{} must not depend on {}: {why}", package.name, dependency.name);
                findings.push(Finding::new(manifest, 1, RULE, message));
            }
        }
    }
    findings
}

/// One TLS provider, ring, and no C libraries for TLS.
pub(super) fn check_lock(path: &str, text: &str) -> Vec<Finding> {
    let named = text.lines().enumerate().filter_map(|(index, line)| {
        let name = line.strip_prefix("name = \"")?.strip_suffix('"')?;
        is_banned(name).then(|| {
            let message = format!("{name} must not be in the tree: TLS is rustls with ring, see who pulls it in");
            Finding::new(path, index + 1, "banned-package", message)
        })
    });
    named.collect()
}

fn is_banned(name: &str) -> bool {
    // openssl-probe only looks for certificate folders and links nothing.
    let is_openssl = name == "openssl" || (name.starts_with("openssl-") && name != "openssl-probe");
    is_openssl || name.starts_with("aws-lc") || name.contains("native-tls")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(manifest: &str, on: &str, kind: Kind) -> Package {
        Package {
            name: "this".to_owned(),
            version: "1.0.0".to_owned(),
            licence: None,
            manifest: Some(manifest.to_owned()),
            dependencies: vec![Dependency { name: on.to_owned(), kind }],
        }
    }

    fn check(folder: &str, on: &str, kind: Kind, is_allowed: bool) {
        let findings = check_direction(&[package(&format!("{folder}/Cargo.toml"), on, kind)]);
        assert_eq!(findings.is_empty(), is_allowed, "{folder} on {on}: {findings:?}");
    }

    #[test]
    fn dependencies_point_down() {
        check("crates/store", BUS, Kind::Normal, true);
        check("crates/runtime", BUS, Kind::Normal, true);
        check("crates/checks", RUNTIME, Kind::Normal, true);
        check("services/poller", CHECKS, Kind::Normal, true);
        check("services/core", RUNTIME, Kind::Normal, true);
        check("services/core", STORE, Kind::Normal, true);
        check("services/core", DIRECTORY, Kind::Normal, true);
        check("crates/directory", STORE, Kind::Normal, true);
        check("accounts", STORE, Kind::Normal, true);
        check("crates/testkit", "bulkhead-accounts", Kind::Normal, true);
        check("tests", TESTKIT, Kind::Normal, true);
        check("services/poller", TESTKIT, Kind::Dev, true);
    }

    #[test]
    fn dependencies_do_not_point_up_or_aside() {
        check("crates/bus", RUNTIME, Kind::Normal, false);
        check("crates/bus", TESTKIT, Kind::Dev, false);
        check("crates/store", RUNTIME, Kind::Normal, false);
        check("crates/store", DIRECTORY, Kind::Normal, false);
        check("crates/directory", CLAIMS, Kind::Normal, false);
        check("crates/runtime", STORE, Kind::Dev, false);
        check("crates/checks", STORE, Kind::Normal, false);
        check("crates/runtime", CHECKS, Kind::Normal, false);
        check("services/core", "bulkhead-poller", Kind::Normal, false);
        check("services/core", "bulkhead-poller", Kind::Dev, false);
        check("services/core", "bulkhead-accounts", Kind::Normal, false);
        check("accounts", "bulkhead-core", Kind::Normal, false);
        check("services/poller", TESTKIT, Kind::Normal, false);
        check("services/poller", BUS, Kind::Build, false);
        check("xtask", BUS, Kind::Normal, false);
        check("crates/new", BUS, Kind::Normal, false);
    }

    #[test]
    fn metadata_is_read() {
        let metadata = json!({"packages": [
            {"name": "a", "version": "0.1.0", "license": "MIT", "source": null, "manifest_path": "/x/accounts/Cargo.toml",
             "dependencies": [{"name": "bulkhead-bus", "kind": null, "path": "/x/crates/bus"}, {"name": "serde", "kind": null},
                              {"name": "bulkhead-testkit", "kind": "dev", "path": "/x/crates/testkit"}]},
            {"name": "serde", "version": "1.0.0", "license": null, "source": "registry", "manifest_path": "/y/Cargo.toml",
             "dependencies": []}]});
        let packages = read_packages(&metadata, Path::new("/x")).unwrap();
        assert_eq!(packages[0].manifest.as_deref(), Some("accounts/Cargo.toml"));
        let kinds: Vec<(&str, Kind)> = packages[0].dependencies.iter().map(|d| (d.name.as_str(), d.kind)).collect();
        assert_eq!(kinds, [(BUS, Kind::Normal), (TESTKIT, Kind::Dev)]);
        assert_eq!((packages[1].manifest.as_deref(), packages[1].licence.as_deref()), (None, None));
        assert!(read_packages(&json!({}), Path::new("/x")).is_err());
        assert!(read_packages(&json!({"packages": [{}]}), Path::new("/x")).is_err());
    }

    #[test]
    fn other_tls_is_found_in_the_lock() {
        for name in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "tokio-native-tls"] {
            let findings = check_lock("Cargo.lock", &format!("[[package]]\nname = \"{name}\"\n"));
            assert_eq!(findings.iter().map(|f| f.line).collect::<Vec<_>>(), [2], "{name}");
        }
        assert!(check_lock("Cargo.lock", "name = \"openssl-probe\"\n \"aws-lc-rs\",\nname = \"ring\"").is_empty());
    }
}
