//! Room: file systems, what JetStream may still write on them, how full streams are, and whether a server has stopped
//! writing. A server that ran out of space does not begin again by itself when there is room.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::finding::{Area, Finding, Level, Look};
use super::home::Home;
use super::reach::Sources;
use super::server_log::critical_line;
use super::servers::{Hub, Said};
use super::stream_state::{StreamState, unseen};
use crate::up::database_folder;

static SPACE: Look = Look {
    area: Area::Disks,
    name: "disk-space",
    rule: "a file system that something is kept on has 15 % free; less than 5 % or 256 MiB is a failure",
    meaning: "streams stop at the first write that fails and stay stopped until their server is started again",
};
static INODES: Look = Look {
    area: Area::Disks,
    name: "disk-inodes",
    rule: "a file system that something is kept on has 10 % of its inodes free; less than 2 % is a failure",
    meaning: "no file can be made, which is the same as a full disk",
};
static PROMISE: Look = Look {
    area: Area::Disks,
    name: "disk-promise",
    rule: "what JetStream may still write on a file system fits into what is free there",
    meaning: "the disk is full before the streams are, and then servers stop instead of refusing",
};
static WRITES: Look = Look {
    area: Area::Disks,
    name: "jetstream-writes",
    rule: "JetStream is enabled on each server and none of its streams has stopped at a write error",
    meaning: "nothing more is stored there: results pile up at the leaves, then in the pollers' memory",
};
static FILL: Look = Look {
    area: Area::Disks,
    name: "stream-fill",
    rule: "a stream is filled to less than 70 %, and none of its subjects to its quota; 90 %, or a subject at its quota, is a failure",
    meaning: "the next results are refused and wait one step earlier: at the leaves, or in the pollers' memory",
};

pub(super) const LOOKS: &[&Look] = &[&SPACE, &INODES, &PROMISE, &WRITES, &FILL];

const SPACE_FAIL_BYTES: u64 = 256 << 20;

/// One file system and what is kept on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FileSystem {
    /// Where it is mounted.
    root: PathBuf,
    kept: Vec<String>,
    used_bytes: u64,
    free_bytes: u64,
    inodes: u64,
    free_inodes: u64,
    /// What JetStream may still write here.
    promised_bytes: u64,
}

impl FileSystem {
    fn subject(&self) -> String {
        let mut kept = self.kept.clone();
        kept.sort();
        kept.dedup();
        kept.join(", ")
    }
}

/// The nearest folder that exists: a server makes its own at its first start.
fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

/// Where things are kept.
fn places(home: &Home) -> Vec<(String, PathBuf)> {
    let mut places = vec![
        ("state".to_owned(), home.layout.home().to_owned()),
        ("database".to_owned(), database_folder(home.layout.home())),
    ];
    places.extend(home.hubs.iter().map(|hub| (hub.server_name.clone(), hub.folder.join("js"))));
    for site in &home.sites {
        let name = format!("leaf {}/{}", site.tenant, site.site);
        places.push((name, home.layout.site(&site.tenant, &site.site).join("js")));
    }
    places
}

fn device(path: &Path) -> Option<u64> {
    std::fs::metadata(existing(path)?).ok().map(|data| data.dev())
}

/// The highest folder above `path` that is on the same file system.
fn root_of(path: &Path) -> PathBuf {
    let Some(path) = existing(path).and_then(|path| path.canonicalize().ok()) else { return path.to_owned() };
    let own = device(&path);
    path.ancestors().take_while(|above| device(above) == own).last().unwrap_or(&path).to_owned()
}

fn measure(path: &Path) -> Option<FileSystem> {
    let seen = rustix::fs::statvfs(existing(path)?).ok()?;
    let used = seen.f_blocks.saturating_sub(seen.f_bfree);
    Some(FileSystem {
        root: root_of(path),
        used_bytes: used * seen.f_frsize,
        free_bytes: seen.f_bavail * seen.f_frsize,
        inodes: seen.f_files,
        free_inodes: seen.f_favail,
        ..FileSystem::default()
    })
}

fn file_systems(home: &Home, hub: &Hub, states: &[StreamState]) -> Vec<FileSystem> {
    let mut by_device: BTreeMap<u64, FileSystem> = BTreeMap::new();
    for (name, path) in places(home) {
        let Some(device) = device(&path) else { continue };
        if !by_device.contains_key(&device)
            && let Some(measured) = measure(&path)
        {
            by_device.insert(device, measured);
        }
        if let Some(found) = by_device.get_mut(&device) {
            found.kept.push(name);
        }
    }
    for (path, bytes) in promises(home, hub, states) {
        if let Some(found) = device(&path).and_then(|device| by_device.get_mut(&device)) {
            found.promised_bytes += bytes;
        }
    }
    by_device.into_values().collect()
}

/// What each server on this machine may still write, and where.
fn promises(home: &Home, hub: &Hub, states: &[StreamState]) -> Vec<(PathBuf, u64)> {
    let mut promises = Vec::new();
    for said in &hub.jetstream {
        let Some(folder) = said.data["config"]["store_dir"].as_str().map(PathBuf::from) else { continue };
        let most = said.data["config"]["max_storage"].as_u64().unwrap_or(0);
        let used = said.data["storage"].as_u64().unwrap_or(0);
        if folder.starts_with(home.layout.home()) {
            promises.push((folder, most.saturating_sub(used)));
        }
    }
    for state in states.iter().filter(|state| !state.is_hub()) {
        let Ok(info) = &state.info else { continue };
        let (most, used) = fill(info);
        let folder = home.layout.home().join("sites").join(&state.holder).join("js");
        promises.push((folder, most.saturating_sub(used)));
    }
    promises
}

/// A stream's limit and what it holds, in bytes.
fn fill(info: &Value) -> (u64, u64) {
    (info["config"]["max_bytes"].as_u64().unwrap_or(0), info["state"]["bytes"].as_u64().unwrap_or(0))
}

fn percent(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 100).checked_div(u128::from(whole)).map_or(100, |percent| u64::try_from(percent).unwrap_or(100))
}

/// `1.5 GiB`.
fn size(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1 << 30 { (1 << 30, "GiB") } else { (1 << 20, "MiB") };
    format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit)
}

fn judge_space(system: &FileSystem) -> Finding {
    let share = percent(system.free_bytes, system.used_bytes + system.free_bytes);
    let level = match share {
        _ if system.free_bytes < SPACE_FAIL_BYTES => Level::Fail,
        0..5 => Level::Fail,
        5..15 => Level::Warn,
        _ => Level::Ok,
    };
    let found = format!("{} free, {share} %, at {}", size(system.free_bytes), system.root.display());
    SPACE.at(level, &system.subject(), found, "make room, or move what is kept there; then look at jetstream-writes")
}

fn judge_inodes(system: &FileSystem) -> Finding {
    if system.inodes == 0 {
        return INODES.ok(&system.subject(), "it has no limit");
    }
    let share = percent(system.free_inodes, system.inodes);
    let level = match share {
        0..2 => Level::Fail,
        2..10 => Level::Warn,
        _ => Level::Ok,
    };
    let found = format!("{share} % free, at {}", system.root.display());
    INODES.at(level, &system.subject(), found, "remove small files from that file system")
}

fn judge_promise(system: &FileSystem) -> Finding {
    let level = if system.promised_bytes > system.free_bytes { Level::Warn } else { Level::Ok };
    let (promised, free) = (size(system.promised_bytes), size(system.free_bytes));
    let found = format!("{promised} promised, {free} free, at {}", system.root.display());
    PROMISE.at(level, &system.subject(), found, "give the streams a disk that holds them, or make room")
}

fn judge_health(said: &Said, jetstream: Option<&Said>) -> Finding {
    let advice =
        format!("make room if a disk is full, then start {} again: only a start ends a write error", said.server);
    if jetstream.is_some_and(|said| said.data["disabled"] == true) {
        return WRITES.fail(&said.server, "JetStream is disabled", advice);
    }
    let errors = said.data["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let texts: Vec<&str> = errors.iter().filter_map(|error| error["error"].as_str()).collect();
    match said.data["status"].as_str() {
        Some("ok") => WRITES.ok(&said.server, "it is well"),
        status => {
            let why = if texts.is_empty() {
                said.data["error"].as_str().unwrap_or("no reason given").to_owned()
            } else {
                texts.join("; ")
            };
            WRITES.fail(&said.server, format!("{}: {why}", status.unwrap_or("no status")), advice)
        }
    }
}

/// What a server has said in its log since its last start, the only place where a leaf tells of a write error.
fn judge_log(home: &Home, process: &str) -> Finding {
    let advice = format!("make room if a disk is full; then {}", home.restart_advice());
    match critical_line(&home.layout.log(process)) {
        Err(why) => WRITES.skip(process, format!("its log cannot be read: {why}")),
        Ok(None) => WRITES.ok(process, "its log tells of no write error since its start"),
        Ok(Some(line)) => WRITES.fail(process, line, advice),
    }
}

/// `1 subject is`, `3 subjects are`.
fn subjects_at(count: usize) -> String {
    if count == 1 { "1 subject is".to_owned() } else { format!("{count} subjects are") }
}

fn judge_fill(state: &StreamState, info: &Value) -> Finding {
    let subject = state.subject();
    let (most, used) = fill(info);
    let share = if most == 0 { 0 } else { percent(used, most) };
    let quota = info["config"]["max_msgs_per_subject"].as_u64();
    let subjects = info["state"]["subjects"].as_object();
    let full =
        subjects.into_iter().flatten().filter(|(_, count)| quota.is_some_and(|quota| count.as_u64() >= Some(quota)));
    let full: Vec<&str> = full.map(|(subject, _)| subject.as_str()).collect();
    let level = match share {
        // At its quota a subject's next batch is refused, however empty the stream is.
        _ if !full.is_empty() => Level::Fail,
        90.. => Level::Fail,
        70.. => Level::Warn,
        _ => Level::Ok,
    };
    let mut found = format!("{share} % of {}, {} messages", size(most), state.messages());
    if let Some(first) = full.first() {
        found
            .push_str(&format!("; {} at the quota, where the next batch is refused: {first}", subjects_at(full.len())));
    }
    let advice = "see why nothing is taken out: links, lag, and consumer-progress";
    FILL.at(level, &subject, found, advice)
}

pub(super) fn look(home: &Home, sources: &Sources, hub: &Hub, states: &[StreamState]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for system in file_systems(home, hub, states) {
        findings.extend([judge_space(&system), judge_inodes(&system), judge_promise(&system)]);
    }
    let lost = sources.presence.lost();
    for said in &hub.health {
        let jetstream = hub.jetstream.iter().find(|other| other.server == said.server);
        findings.push(match &lost {
            Some(why) => WRITES.skip(&said.server, why),
            None => judge_health(said, jetstream),
        });
    }
    if sources.system.get().is_none() {
        findings.push(WRITES.skip("hub", "the hub cannot be asked"));
    }
    for site in &home.sites {
        findings.push(judge_log(home, &format!("leaf-{}-{}", site.tenant, site.site)));
    }
    let seen = states.iter().filter_map(|state| Some((state, state.info.as_ref().ok()?)));
    findings.extend(seen.map(|(state, info)| judge_fill(state, info)));
    findings.extend(unseen(&FILL, states));
    if sources.provisioner.get().is_none() {
        findings.push(FILL.skip("hub", "the hub cannot be asked"));
    }
    let away = sources.leaves.iter().filter(|leaf| leaf.bus.get().is_none());
    findings.extend(away.map(|leaf| FILL.skip(&leaf.name, "the leaf cannot be asked")));
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::stream_state::tests::hub_stream;
    use super::*;

    fn system(used_mib: u64, free_mib: u64) -> FileSystem {
        FileSystem { used_bytes: used_mib << 20, free_bytes: free_mib << 20, ..FileSystem::default() }
    }

    #[test]
    fn space_is_judged_by_share_and_by_size() {
        for (used, free, level) in [
            (5_000, 5_000, Level::Ok),
            (8_500, 1_500, Level::Ok),
            (8_600, 1_400, Level::Warn),
            (9_600, 400, Level::Fail),
            (100, 255, Level::Fail),
            (0, 0, Level::Fail),
        ] {
            assert_eq!(judge_space(&system(used, free)).level, level, "{used} {free}");
        }
    }

    #[test]
    fn a_file_system_is_named_by_its_hub_servers_and_by_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for (path, name) in [("hub", "hub-1"), ("hub-2", "hub-2")] {
            std::fs::create_dir(folder.path().join(path)).unwrap();
            std::fs::write(folder.path().join(path).join("hub.conf"), format!("server_name: \"{name}\"\n")).unwrap();
        }
        let home = Home::read(folder.path(), time::OffsetDateTime::UNIX_EPOCH);
        let systems = file_systems(&home, &Hub::default(), &[]);
        assert_eq!(systems[0].subject(), "database, hub-1, hub-2, state");
        assert!(folder.path().starts_with(&systems[0].root) && judge_space(&systems[0]).found.contains(", at /"));
        assert_eq!(root_of(Path::new("/proc/self")), Path::new("/proc"));
    }

    #[test]
    fn inodes_and_promises_are_judged() {
        let inodes =
            |free_inodes| judge_inodes(&FileSystem { inodes: 1_000, free_inodes, ..FileSystem::default() }).level;
        assert_eq!([inodes(500), inodes(50), inodes(5)], [Level::Ok, Level::Warn, Level::Fail]);
        assert_eq!(judge_inodes(&FileSystem::default()).level, Level::Ok, "a file system that counts none");
        let promise = |promised_bytes| judge_promise(&FileSystem { promised_bytes, ..system(0, 1_000) }).level;
        assert_eq!([promise(1_000 << 20), promise(1_001 << 20)], [Level::Ok, Level::Warn]);
    }

    #[test]
    fn a_stream_that_stopped_at_a_write_error_is_named_by_the_servers_health() {
        let said = |data: Value| Said { server: "hub-1".into(), version: String::new(), time: None, data };
        assert_eq!(judge_health(&said(json!({"status": "ok"})), None).level, Level::Ok);
        let error = json!({"status": "error", "errors": [{"type": "STREAM", "error": "RESULTS: no space left"}]});
        let finding = judge_health(&said(error), None);
        assert_eq!((finding.level, finding.found.as_str()), (Level::Fail, "error: RESULTS: no space left"));
        let disabled = said(json!({"disabled": true}));
        assert_eq!(judge_health(&said(json!({"status": "ok"})), Some(&disabled)).level, Level::Fail);
        assert_eq!(judge_health(&said(json!({})), None).level, Level::Fail);
    }

    #[test]
    fn a_stream_is_judged_by_its_bytes_and_by_each_subject() {
        let judge = |bytes: u64, count: u64| {
            let config = json!({"max_bytes": 1_000, "max_msgs_per_subject": 32});
            let state = json!({"bytes": bytes, "messages": count, "subjects": {"a.b": count, "a.c": 1}});
            let state = hub_stream(state, config, json!({}));
            judge_fill(&state, state.info.as_ref().unwrap())
        };
        assert_eq!(judge(699, 31).level, Level::Ok);
        assert_eq!(judge(700, 31).level, Level::Warn);
        assert_eq!(judge(900, 31).level, Level::Fail);
        let finding = judge(10, 32);
        assert_eq!(finding.level, Level::Fail);
        assert!(
            finding.found.contains("1 subject is at the quota") && finding.found.ends_with("a.b"),
            "{}",
            finding.found
        );
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(256 << 20), "256.0 MiB");
        assert_eq!(size(0), "0.0 MiB");
        assert_eq!(percent(1, 0), 100);
    }
}
