//! The control: a healthy deployment, which every look looks at and none complains about.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::patient::{MACHINES_OWN, Patient};

/// What servers and services write all the time.
const WRITTEN_ALL_THE_TIME: [&str; 5] = ["js", "jwt", "logs", "postgres", "state"];

pub(crate) async fn has_no_finding_changes_nothing_and_shows_no_secret(patient: &Patient) -> anyhow::Result<()> {
    let before = files(patient.deployment.home())?;
    let said = patient.is_well(&[]).await?;
    assert_eq!(files(patient.deployment.home())?, before, "the doctor changed a file");

    let looked: BTreeSet<&str> = said.lines.iter().filter_map(|line| line["look"].as_str()).collect();
    let all: BTreeSet<&str> = bulkhead_accounts::doctor::looks().iter().map(|look| look.name).collect();
    assert_eq!(looked, all, "a look was not looked at");
    let skipped = said.lines.iter().filter(|line| line["level"] == "skip" && line["look"] != "clock-synchronised");
    assert_eq!(skipped.collect::<Vec<_>>(), Vec::<&serde_json::Value>::new());
    for line in &said.lines {
        for word in ["area", "look", "subject", "level", "found", "rule", "meaning", "advice"] {
            assert!(line[word].is_string(), "{word} is missing in {line}");
        }
    }
    shows_no_secret(patient).await?;
    adds_up(patient).await
}

/// Modification time and content of every file that only we write.
fn files(home: &Path) -> anyhow::Result<BTreeMap<PathBuf, (i64, Vec<u8>)>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![home.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let (entry, path) =
                (entry.as_ref().map_err(|_| std::io::Error::other("entry"))?.file_name(), entry?.path());
            if WRITTEN_ALL_THE_TIME.iter().any(|name| entry == *name) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.clone(), (fs::metadata(&path)?.mtime_nsec(), fs::read(&path)?));
            }
        }
    }
    Ok(found)
}

/// The seeds, private keys and passwords of a deployment, one line each.
fn secrets(home: &Path) -> anyhow::Result<Vec<String>> {
    let is_secret = |path: &Path| {
        path.extension()
            .is_some_and(|end| ["nk", "key", "creds", "password", "url"].iter().any(|secret| end == *secret))
    };
    let mut secrets = Vec::new();
    for (path, (_, bytes)) in files(home)?.into_iter().filter(|(path, _)| is_secret(path)) {
        let text = String::from_utf8(bytes).with_context(|| path.display().to_string())?;
        secrets.extend(text.lines().filter(|line| line.len() > 20 && !line.contains([' ', '*'])).map(str::to_owned));
    }
    Ok(secrets)
}

async fn shows_no_secret(patient: &Patient) -> anyhow::Result<()> {
    let secrets = secrets(patient.deployment.home())?;
    assert!(secrets.len() > 100, "only {} secrets were found to look for", secrets.len());
    for args in [["doctor", "--verbose"], ["doctor", "--json"]] {
        let output = patient.deployment.bulkhead(&args).await?;
        let said = format!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        let shown: Vec<&String> = secrets.iter().filter(|secret| said.contains(secret.as_str())).collect();
        assert!(shown.is_empty(), "{args:?} shows {} secrets", shown.len());
    }
    Ok(())
}

/// Text for people: a line for each area, and one that adds them up.
async fn adds_up(patient: &Patient) -> anyhow::Result<()> {
    let output = patient.deployment.bulkhead(&["doctor", "--area", "permissions", "--area", "links"]).await?;
    let text = String::from_utf8(output.stdout)?;
    let counts: Vec<u32> = text
        .lines()
        .filter_map(|line| line.split_once(": ").or_else(|| line.split_once(" looks: ").map(|(all, _)| (all, all))))
        .filter_map(|(_, counts)| counts.split(' ').next()?.parse().ok())
        .collect();
    let [links, permissions, all] = counts[..] else { anyhow::bail!("{text}") };
    assert_eq!(links + permissions, all, "{text}");
    assert!(text.starts_with("links: ") && !MACHINES_OWN.iter().any(|look| text.contains(look)), "{text}");
    Ok(())
}
