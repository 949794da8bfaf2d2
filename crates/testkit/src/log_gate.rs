//! Fails a test when a process logged a warning, an error or a panic that the test did not expect.
//!
//! It reads the logs of our services (text and JSON), of nats-server and of PostgreSQL. A silent process fails too: its
//! logs were not captured.

/// Shorter ones match too much by accident.
const ALLOWED_LEAST: usize = 12;

/// What the logs show that the test does not allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogGateError {
    #[error("{0:?} may match anything: an allowed text has at least {ALLOWED_LEAST} characters")]
    Broad(String),
    #[error("{process} logged nothing: capture its standard error")]
    Silent { process: String },
    #[error("{process} logged what no list allows:\n  {}", .lines.join("\n  "))]
    Unlisted { process: String, lines: Vec<String> },
}

/// A list of texts that excuse a line.
#[derive(Debug, Clone)]
pub struct LogGate {
    allowed: Vec<String>,
}

impl LogGate {
    /// `allowed` are parts of lines that are expected in this test; write down beside each why.
    ///
    /// # Errors
    /// [`LogGateError::Broad`] for a text that is too short to mean anything.
    pub fn allowing(allowed: &[&str]) -> Result<Self, LogGateError> {
        if let Some(broad) = allowed.iter().find(|text| text.trim().chars().count() < ALLOWED_LEAST) {
            return Err(LogGateError::Broad((*broad).to_owned()));
        }
        Ok(Self { allowed: allowed.iter().map(|text| (*text).to_owned()).collect() })
    }

    /// # Errors
    /// [`LogGateError::Unlisted`] with every line that is not excused, [`LogGateError::Silent`] when there is none.
    pub fn check<'a>(&self, process: &str, lines: impl IntoIterator<Item = &'a str>) -> Result<(), LogGateError> {
        let process = process.to_owned();
        let mut lines = lines.into_iter().filter(|line| !line.trim().is_empty()).peekable();
        if lines.peek().is_none() {
            return Err(LogGateError::Silent { process });
        }
        let is_excused = |line: &str| self.allowed.iter().any(|allowed| line.contains(allowed));
        let lines: Vec<String> =
            lines.filter(|line| is_trouble(line) && !is_excused(line)).map(str::to_owned).collect();
        if lines.is_empty() { Ok(()) } else { Err(LogGateError::Unlisted { process, lines }) }
    }
}

/// Whether a line is a warning or worse. Levels are looked for where the writers put them, not in messages.
fn is_trouble(line: &str) -> bool {
    if line.contains("panicked at ") {
        return true;
    }
    if let Some(level) = json_level(line) {
        return matches!(level.as_str(), "WARN" | "ERROR");
    }
    let mut head = line.split_whitespace().take(8);
    let tracing = line.split_whitespace().nth(1).is_some_and(|word| matches!(word, "WARN" | "ERROR"));
    let servers = |word: &str| {
        matches!(word, "[WRN]" | "[ERR]" | "[FTL]" | "WARNING:" | "ERROR:" | "FATAL:" | "PANIC:" | "nats-server:")
    };
    tracing || head.any(servers)
}

fn json_level(line: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(line.trim()).ok()?;
    Some(value.get("level")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, is_refused: bool) {
        let gate = LogGate::allowing(&["lost the link to the hub"]).unwrap();
        let result = gate.check("core", ["2026-01-01T00:00:00Z  INFO core: ready", line]);
        let lines = vec![line.to_owned()];
        let expected =
            if is_refused { Err(LogGateError::Unlisted { process: "core".to_owned(), lines }) } else { Ok(()) };
        assert_eq!(result, expected);
    }

    #[test]
    fn warnings_and_worse_of_every_writer_are_refused() {
        check("2026-01-01T00:00:00.000001Z  WARN bulkhead_core::ingest: went on degraded", true);
        check("2026-01-01T00:00:00.000001Z ERROR bulkhead_core::ingest: broke", true);
        check(r#"{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","message":"broke"}"#, true);
        check("[71] 2026/01/01 00:00:00.000001 [WRN] Plaintext passwords detected", true);
        check("[71] 2026/01/01 00:00:00.000001 [ERR] Publish Violation", true);
        check("nats-server: hub.conf:3:1: parse error", true);
        check("2026-01-01 00:00:00.000 UTC [9] FATAL:  role does not exist", true);
        check("thread 'main' (7) panicked at src/main.rs:1:1:", true);
    }

    #[test]
    fn excused_lines_and_lower_levels_pass() {
        check("2026-01-01T00:00:00.000001Z  WARN bulkhead_poller: lost the link to the hub, trying again", false);
        check("2026-01-01T00:00:00.000001Z  INFO bulkhead_core: a message about an ERROR passes", false);
        check(r#"{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","message":"no WARN here"}"#, false);
        check("[71] 2026/01/01 00:00:00.000001 [INF] Server is ready", false);
        check("2026-01-01 00:00:00.000 UTC [9] LOG:  database system is ready", false);
    }

    #[test]
    fn a_gate_that_cannot_fail_is_refused() {
        assert_eq!(LogGate::allowing(&[""]).unwrap_err(), LogGateError::Broad(String::new()));
        assert_eq!(LogGate::allowing(&["WARN"]).unwrap_err(), LogGateError::Broad("WARN".to_owned()));
        let gate = LogGate::allowing(&[]).unwrap();
        assert_eq!(gate.check("core", ["", "  "]).unwrap_err(), LogGateError::Silent { process: "core".to_owned() });
    }
}
