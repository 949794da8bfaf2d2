//! What a nats-server has written into its log since its last start that means it no longer stores anything.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of the end of a log is read.
const TAIL_BYTES: u64 = 4 << 20;
const LINE_CHARS: usize = 400;
const START: &str = "Starting nats-server";
/// The words of a server that has stopped a stream, or all of JetStream.
const CRITICAL: [&str; 3] = ["ritical write error", "will be DISABLED", "being DISABLED"];

fn last_critical(log: &str) -> Option<String> {
    let since_start = log.rsplit_once(START).map_or(log, |(_, rest)| rest);
    let line = since_start.lines().rfind(|line| CRITICAL.iter().any(|words| line.contains(words)))?;
    Some(line.trim().chars().take(LINE_CHARS).collect())
}

/// The last line of that kind; `None` when there is none since the last start.
pub(super) fn critical_line(path: &Path) -> Result<Option<String>, std::io::Error> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(last_critical(&String::from_utf8_lossy(&tail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_since_the_last_start_counts() {
        let error = "[9] 2026/01/01 00:00:01 [ERR] JetStream stream 'A > R' critical write error: no space left\n";
        let start = "[9] 2026/01/01 00:00:00 [INF] Starting nats-server\n";
        assert_eq!(last_critical(&format!("{start}all is well\n")), None);
        assert_eq!(last_critical(&format!("{start}{error}more\n")).as_deref(), Some(error.trim()));
        assert_eq!(last_critical(&format!("{start}{error}{start}all is well\n")), None);
        // A log so long that its start is no longer in what is read.
        assert!(last_critical(&format!("{error}more\n")).is_some());
        assert!(last_critical("JetStream out of space, will be DISABLED").is_some());
    }

    #[test]
    fn a_log_is_read_from_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leaf.log");
        assert!(critical_line(&path).is_err());
        std::fs::write(&path, format!("{}\nFilestore [R] Critical write error: x\n", "x".repeat(5 << 20))).unwrap();
        assert_eq!(critical_line(&path).unwrap().as_deref(), Some("Filestore [R] Critical write error: x"));
    }
}
