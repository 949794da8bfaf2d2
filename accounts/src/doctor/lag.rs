//! Lag: how long messages wait on each lane, how old the newest stored slot of each site is, and whether core is ready.

use std::time::Duration;

use bulkhead_bus::CoreVerb;
use bulkhead_bus::StreamName;
use bulkhead_bus::payload::{Query, StateRow};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::finding::{Area, Finding, Level, Look};
use super::home::Home;
use super::reach::{Person, PollerSettings, Sources, limited};
use super::stream_state::{StreamState, unseen};
use crate::client::query;
use crate::up::Site;

static OLDEST: Look = Look {
    area: Area::Lag,
    name: "oldest-message",
    rule: "the oldest message has waited at most 30 s in RESULTS, 10 min in BACKFILL and 60 s at a leaf; ten times that is a failure",
    meaning: "results are stored late; when a lane is full the step before it keeps them",
};
static NEWEST: Look = Look {
    area: Area::Lag,
    name: "newest-slot",
    rule: "the newest stored slot of a site is at most three intervals and 10 s old; twenty intervals and 60 s are a failure",
    meaning: "a site's results are late or missing, or it measures nothing",
};
static READY: Look = Look {
    area: Area::Lag,
    name: "core-ready",
    rule: "core says that it is ready",
    meaning: "core waits for something that it needs, and stores nothing until it has it",
};

pub(super) const LOOKS: &[&Look] = &[&OLDEST, &NEWEST, &READY];

const HEALTH_LIMIT: Duration = Duration::from_secs(3);
const HEALTH_BYTES: u64 = 4_096;

/// How long a message may wait, in milliseconds.
fn patience_ms(stream: StreamName) -> i64 {
    match stream {
        StreamName::Results => 30_000,
        // What waited through an outage passes at a limited rate.
        StreamName::Backfill | StreamName::BackfillEdge => 600_000,
        StreamName::ResultsEdge => 60_000,
    }
}

fn level_of(age_ms: i64, warn_ms: i64, fail_ms: i64) -> Level {
    match age_ms {
        age if age > fail_ms => Level::Fail,
        age if age > warn_ms => Level::Warn,
        _ => Level::Ok,
    }
}

fn judge_oldest(state: &StreamState) -> Finding {
    let subject = state.subject();
    let Some(age_ms) = state.oldest_ms() else { return OLDEST.ok(&subject, "nothing waits") };
    let warn_ms = patience_ms(state.stream);
    let found = format!("{} messages, the oldest for {} s", state.messages(), age_ms / 1_000);
    let advice = match state.stream {
        StreamName::Results | StreamName::Backfill => {
            "see whether core and the database are there and keep up: links, streams, logs/core.log"
        }
        StreamName::ResultsEdge | StreamName::BackfillEdge => {
            "see whether the leaf is linked and its forwarder runs: links, and the site's logs"
        }
    };
    OLDEST.at(level_of(age_ms, warn_ms, warn_ms * 10), &subject, found, advice)
}

fn judge_newest(subject: &str, newest_ms: Option<i64>, interval_s: u32, now_ms: i64) -> Finding {
    let advice = "follow it backwards: core-ready, oldest-message, leaf-linked, process-runs, then the poller's log";
    let Some(newest_ms) = newest_ms else { return NEWEST.fail(subject, "no result was ever stored", advice) };
    let (age_ms, interval_ms) = ((now_ms - newest_ms).max(0), i64::from(interval_s) * 1_000);
    let level = level_of(age_ms, interval_ms * 3 + 10_000, interval_ms * 20 + 60_000);
    NEWEST.at(level, subject, format!("{} s old, measured every {interval_s} s", age_ms / 1_000), advice)
}

/// The newest slot that core has of a site, over the bus.
async fn newest_slot(person: &Person, site: &Site) -> Result<Option<i64>, String> {
    let about = Query { tenant: Some(site.tenant.to_string()), site: Some(site.site.clone()), ..Query::default() };
    let rows = limited(query::<StateRow>(&person.bus, &person.user, CoreVerb::ListStates, &about)).await?;
    Ok(rows.iter().map(|row| row.slot_ms).max())
}

/// The shortest interval of the site's first poller; zero when it measures nothing.
fn interval_s(home: &Home, site: &Site) -> Result<u32, String> {
    let settings = PollerSettings::of_site(home, site)?;
    Ok(settings.checks.iter().map(|check| check.interval_s).min().unwrap_or(0))
}

/// `person` is there when core has answered at all, which is a finding of its own.
async fn site_findings(home: &Home, person: Option<&Person>) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Core that does not answer once is not asked again: each answer is waited for.
    let mut silent = None;
    for site in &home.sites {
        let subject = format!("{}/{}", site.tenant, site.site);
        let Some(asked) = person else {
            findings.push(NEWEST.skip(&subject, "core cannot be asked"));
            continue;
        };
        let newest = match &silent {
            Some(why) => Err(String::clone(why)),
            None => newest_slot(asked, site).await,
        };
        findings.push(match (interval_s(home, site), newest) {
            (_, Err(why)) => {
                let finding = NEWEST.warn(&subject, &why, "see links, and logs/core.log");
                silent = Some(why);
                finding
            }
            (Err(why), _) => NEWEST.warn(&subject, why, home.restart_advice()),
            (Ok(0), _) => NEWEST.skip(&subject, "its first poller measures nothing"),
            (Ok(interval), Ok(newest_ms)) => {
                let finding = judge_newest(&subject, newest_ms, interval, bulkhead_runtime::now_ms());
                home.excused(finding, site.tenant.as_str())
            }
        });
    }
    findings
}

#[derive(Deserialize)]
struct CoreSettings {
    health_listen: Option<String>,
}

/// What core's health page says: the status line's code and the text.
pub(super) async fn ask_health(address: &str) -> Result<(u16, String), String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: core\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(HEALTH_BYTES).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match tokio::time::timeout(HEALTH_LIMIT, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer within {HEALTH_LIMIT:?}")),
    };
    let code = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    let code = code.ok_or("the answer is no HTTP")?;
    let text = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    Ok((code, text.to_owned()))
}

/// `lost` is why core cannot have what it needs of the hub.
async fn ready_finding(home: &Home, lost: Option<String>) -> Finding {
    let path = home.layout.core().join("core.toml");
    let settings = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let settings = settings.and_then(|text| toml::from_str::<CoreSettings>(&text).map_err(|e| e.message().to_owned()));
    let address = match settings {
        Err(why) => return READY.fail("core", format!("{}: {why}", home.shown(&path)), home.restart_advice()),
        Ok(CoreSettings { health_listen: None }) => return READY.skip("core", "it serves no health page"),
        Ok(CoreSettings { health_listen: Some(address) }) => address,
    };
    let advice = format!("read {}", home.layout.log("core").display());
    match ask_health(&address).await {
        Ok((200, _)) => READY.ok("core", "ready"),
        Ok((_, text)) if lost.is_some() => READY.skip("core", format!("{text}: {}", lost.unwrap_or_default())),
        Ok((code, text)) => READY.fail("core", format!("{code}: {text}"), advice),
        Err(why) if home.up.is_none() => READY.skip("core", format!("nothing runs ({why})")),
        Err(why) => READY.fail("core", format!("http://{address}/readyz: {why}"), advice),
    }
}

pub(super) async fn look(home: &Home, sources: &Sources, states: &[StreamState], core_answers: bool) -> Vec<Finding> {
    let mut findings: Vec<Finding> = states
        .iter()
        .filter(|state| state.info.is_ok())
        .map(|state| home.excused(judge_oldest(state), &state.holder))
        .collect();
    if sources.provisioner.get().is_none() {
        findings.push(OLDEST.skip("hub", "the hub cannot be asked"));
    }
    let away = sources.leaves.iter().filter(|leaf| leaf.bus.get().is_none());
    findings.extend(away.map(|leaf| OLDEST.skip(&leaf.name, "the leaf cannot be asked")));
    findings.extend(unseen(&OLDEST, states));
    findings.extend(site_findings(home, sources.person.get().filter(|_| core_answers)).await);
    findings.push(ready_finding(home, sources.presence.lost()).await);
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::stream_state::tests::hub_stream;
    use super::*;

    #[test]
    fn messages_may_wait_a_while_and_no_longer() {
        let judge =
            |since: &str| judge_oldest(&hub_stream(json!({"messages": 2, "first_ts": since}), json!({}), json!({})));
        assert_eq!(judge("2026-01-01T00:09:31Z").level, Level::Ok);
        assert_eq!(judge("2026-01-01T00:09:29Z").level, Level::Warn);
        assert_eq!(judge("2026-01-01T00:04:59Z").level, Level::Fail);
        assert_eq!(judge_oldest(&hub_stream(json!({"messages": 0}), json!({}), json!({}))).found, "nothing waits");
    }

    #[test]
    fn a_site_is_judged_by_its_own_interval() {
        let judge = |age_s: i64, interval_s| judge_newest("a/b", Some(-age_s * 1_000), interval_s, 0).level;
        assert_eq!([judge(25, 5), judge(26, 5), judge(161, 5)], [Level::Ok, Level::Warn, Level::Fail]);
        assert_eq!([judge(189, 60), judge(191, 60)], [Level::Ok, Level::Warn]);
        assert_eq!(judge_newest("a/b", None, 5, 0).level, Level::Fail);
    }

    #[tokio::test]
    async fn a_health_page_is_read_and_silence_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = [0; 64];
            let _ = stream.read(&mut question).await.unwrap();
            let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 20\r\n\r\nwaiting for database\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        assert_eq!(ask_health(&address).await, Ok((503, "waiting for database".to_owned())));
        server.await.unwrap();
        assert!(ask_health(&address).await.is_err(), "nobody listens any more");
    }
}
