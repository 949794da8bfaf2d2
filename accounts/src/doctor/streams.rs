//! Streams and consumers: each is there, is as this release makes it, has all its copies, and moves.

use bulkhead_bus::StreamName;
use bulkhead_runtime::{expected_consumer, expected_stream};
use bulkhead_store::Inspection;
use serde_json::Value;

use super::finding::{Area, Finding, Level, Look};
use super::home::Home;
use super::reach::{Sources, limited};
use super::servers::{Hub, time_ms};
use super::stream_state::{StreamState, is_undecided, unseen};
use crate::up::hub_size;

static STREAM: Look = Look {
    area: Area::Streams,
    name: "stream-configuration",
    rule: "a stream is there and is configured as this release makes it",
    meaning: "results are refused, lost sooner than promised, or one tenant can take another's place",
};
static CONSUMER: Look = Look {
    area: Area::Streams,
    name: "consumer-configuration",
    rule: "a stream's consumer is there and is configured as this release makes it",
    meaning: "nothing is taken out of the stream, or messages are given up after some deliveries",
};
static COPIES: Look = Look {
    area: Area::Streams,
    name: "stream-copies",
    rule: "a stream has a leader, and each of its copies is up to date by the leader's word and by its own server's",
    meaning: "one more server lost means that nothing is stored, or that what was acknowledged is gone",
};
static PROGRESS: Look = Look {
    area: Area::Streams,
    name: "consumer-progress",
    rule: "what was delivered is acknowledged within a minute; 10 minutes are a failure",
    meaning: "messages are stranded: they were delivered, and whoever has them neither stores nor gives them back",
};
static REDELIVERY: Look = Look {
    area: Area::Streams,
    name: "consumer-redelivery",
    rule: "no message is on its second delivery or a later one",
    meaning: "storing it has failed before: core or the database was away, or the message itself is the trouble",
};
static DEAD: Look = Look {
    area: Area::Streams,
    name: "dead-letters",
    rule: "nothing became a dead letter in the last hour",
    meaning: "results were refused, and are kept with the reason instead of being stored",
};

pub(super) const LOOKS: &[&Look] = &[&STREAM, &CONSUMER, &COPIES, &PROGRESS, &REDELIVERY, &DEAD];

const SLOW_MS: i64 = 60_000;
const STUCK_MS: i64 = 600_000;
const DEAD_LETTER_WINDOW_MS: i64 = 3_600_000;
/// What a server fills in where a configuration says nothing.
const SERVER_DEFAULTS: [(&str, u64); 1] = [("max_waiting", 512)];
/// Dead letters are most often what a changed or broken poller sends.
const DEAD_ADVICE: &str = "read the reasons: select reason, detail, subject from dead_letter, in the tenant's schema and under its setting; mend the sender";

/// Absent, zero, unlimited and empty are the same: one side writes them out and the other does not.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is) => !is,
        Value::Number(number) => number.as_i64() == Some(0) || number.as_i64() == Some(-1),
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(items) => items.is_empty(),
        // The server's own notes begin like this.
        Value::Object(fields) => fields.iter().all(|(name, value)| name.starts_with("_nats.") || is_nothing(value)),
    }
}

/// Each field that is not as expected: `max_bytes is 5, not 10`.
fn drift(expected: &Value, found: &Value) -> Vec<String> {
    let none = serde_json::Map::new();
    let (expected, found) = (expected.as_object().unwrap_or(&none), found.as_object().unwrap_or(&none));
    let mut names: Vec<&String> = expected.keys().chain(found.keys()).collect();
    names.sort();
    names.dedup();
    let mut differences = Vec::new();
    for name in names {
        let (ours, theirs) = (expected.get(name).unwrap_or(&Value::Null), found.get(name).unwrap_or(&Value::Null));
        let is_default = SERVER_DEFAULTS.iter().any(|(field, value)| field == name && theirs.as_u64() == Some(*value));
        let is_same = ours == theirs || (is_nothing(ours) && (is_nothing(theirs) || is_default));
        if !is_same {
            differences.push(format!("{name} is {theirs}, not {ours}"));
        }
    }
    differences
}

fn configuration_finding(
    look: &'static Look,
    subject: &str,
    answer: &Result<Value, String>,
    expected: &Value,
    advice: &str,
) -> Finding {
    match answer {
        Err(why) if is_undecided(why) => look.skip(subject, why),
        Err(why) => look.fail(subject, why, advice),
        Ok(answer) => {
            let differences = drift(expected, &answer["config"]);
            if differences.is_empty() {
                return look.ok(subject, "as expected");
            }
            look.fail(subject, differences.join("; "), advice)
        }
    }
}

/// What is wrong with a copy, by the list that the leader keeps.
fn by_leader(copy: &Value) -> Option<String> {
    if copy["current"] == true && copy["offline"] != true {
        return None;
    }
    let state = if copy["offline"] == true { "offline" } else { "behind" };
    Some(format!("is {state} by {} operations", copy["lag"].as_u64().unwrap_or(0)))
}

/// A choice takes up to 10 s. What can stand in its way for ever was seen: a server that lost its disk and goes on.
const NO_LEADER: &str = "look again after 10 s, for a choice takes that long; then `bulkhead hub status`. A server whose disk vanished under its running process can keep the others from choosing: end that process with kill -9; `up`, or the service manager, starts it again. See docs/runbooks/replace-a-hub-server.md";

/// `replicas` is how many servers should hold the stream. For some seconds a leader calls the copy of a server with an
/// emptied disk current, so each server's word on itself counts as well.
fn copies_finding(state: &StreamState, info: &Value, hub: &Hub, replicas: usize) -> Finding {
    let subject = state.subject();
    let cluster = &info["cluster"];
    let advice = "bring the server back that is behind or away; see links and disks";
    let Some(leader) = cluster["leader"].as_str().filter(|name| !name.is_empty()) else {
        return COPIES.fail(&subject, "it has no leader: nothing of this lane is stored now", NO_LEADER);
    };
    let copies = cluster["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    let count = copies.len() + 1;
    // A server that stands alone has no copy to be behind: what is wrong with it is among the disks.
    let own_word = |server: &str| hub.own_word(server, state.stream.as_str()).filter(|_| count > 1);
    let others = copies.iter().map(|copy| {
        let server = copy["name"].as_str().unwrap_or("a server");
        (server, by_leader(copy).or_else(|| own_word(server)))
    });
    let all = std::iter::once((leader, own_word(leader))).chain(others);
    let behind: Vec<String> = all.filter_map(|(server, wrong)| Some(format!("{server} {}", wrong?))).collect();
    if !behind.is_empty() {
        // Two of three still store; a single one left does not.
        let is_lost = (count - behind.len()) * 2 <= count;
        let level = if is_lost { Level::Fail } else { Level::Warn };
        return COPIES.at(level, &subject, behind.join("; "), advice);
    }
    if count < replicas {
        return COPIES.warn(&subject, format!("{count} copies of {replicas}"), advice);
    }
    COPIES.ok(&subject, format!("{count}, led by {leader}"))
}

fn progress_findings(subject: &str, consumer: &Value, advice: &str) -> Vec<Finding> {
    let pending = consumer["num_ack_pending"].as_u64().unwrap_or(0);
    let redelivered = consumer["num_redelivered"].as_u64().unwrap_or(0);
    let moved = time_ms(&consumer["ack_floor"]["last_active"]).or_else(|| time_ms(&consumer["created"]));
    let still_ms = time_ms(&consumer["ts"]).zip(moved).map_or(0, |(now, moved)| (now - moved).max(0));
    let found =
        format!("{pending} delivered and not acknowledged, the last acknowledgement {} s ago", still_ms / 1_000);
    let level = match still_ms {
        _ if pending == 0 => Level::Ok,
        ms if ms > STUCK_MS => Level::Fail,
        ms if ms > SLOW_MS => Level::Warn,
        _ => Level::Ok,
    };
    let progress = PROGRESS.at(level, subject, found, advice);
    let level = if redelivered > 0 { Level::Warn } else { Level::Ok };
    vec![progress, REDELIVERY.at(level, subject, format!("{redelivered} messages"), advice)]
}

fn stream_findings(home: &Home, hub: &Hub, state: &StreamState, replicas: usize) -> Vec<Finding> {
    let spec = state.stream.spec();
    let subject = state.subject();
    let restart = home.restart_advice();
    let mut findings =
        vec![configuration_finding(&STREAM, &subject, &state.info, &expected_stream(&spec, replicas), &restart)];
    let expected = expected_consumer(&spec);
    findings.push(configuration_finding(&CONSUMER, &subject, &state.consumer, &expected, &restart));
    if let Ok(info) = &state.info {
        findings.push(copies_finding(state, info, hub, replicas));
    }
    findings.extend(unseen(&COPIES, std::slice::from_ref(state)));
    if let Ok(consumer) = &state.consumer {
        let who = if state.is_hub() { "core" } else { "the site's forwarder" };
        let advice =
            format!("see whether {who} runs and what its log says: {}", home.layout.home().join("logs").display());
        let progress = progress_findings(&subject, consumer, &advice).into_iter();
        findings.extend(progress.map(|finding| home.excused(finding, &state.holder)));
    }
    findings
}

async fn dead_letter_findings(database: &Inspection, now_ms: i64) -> Result<Vec<Finding>, String> {
    let since = now_ms - DEAD_LETTER_WINDOW_MS;
    let mut findings = Vec::new();
    for (_, tenant) in limited(database.tenants()).await?.tenants {
        let letters = limited(database.dead_letters(&tenant, since)).await?;
        let counts: Vec<String> = letters.iter().map(|some| format!("{} {}", some.count, some.reason)).collect();
        let level = if counts.is_empty() { Level::Ok } else { Level::Warn };
        let found = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        findings.push(DEAD.at(level, tenant.slug.as_str(), found, DEAD_ADVICE));
    }
    let unclaimed = limited(database.unclaimed_dead_letters(since)).await?;
    let level = if unclaimed > 0 { Level::Warn } else { Level::Ok };
    let advice = "read platform.unclaimed_dead_letter: an account speaks that the database does not know; see drift";
    findings.push(DEAD.at(level, "accounts that are no tenants", format!("{unclaimed}"), advice));
    Ok(findings)
}

pub(super) async fn look(home: &Home, sources: &Sources, hub: &Hub, states: &[StreamState]) -> Vec<Finding> {
    let replicas = hub_size(&home.layout).unwrap_or_default().servers();
    let lost = sources.presence.lost();
    let of_state = |state: &StreamState| match &lost {
        Some(why) if state.is_hub() => {
            [&STREAM, &CONSUMER, &COPIES].map(|look| look.skip(&state.subject(), why)).to_vec()
        }
        Some(_) | None => stream_findings(home, hub, state, if state.is_hub() { replicas } else { 1 }),
    };
    let mut findings: Vec<Finding> = states.iter().flat_map(of_state).collect();
    if sources.provisioner.get().is_none() {
        findings.extend(StreamName::HUB.map(|stream| STREAM.skip(stream.as_str(), "the hub cannot be asked")));
    }
    for leaf in sources.leaves.iter().filter(|leaf| leaf.bus.get().is_none()) {
        findings.push(STREAM.skip(&leaf.name, "the leaf cannot be asked"));
    }
    match sources.database.get() {
        None => findings.push(DEAD.skip("database", "the database cannot be asked")),
        Some(database) => {
            let letters = dead_letter_findings(database, home.now_ms()).await;
            findings.extend(
                letters.unwrap_or_else(|why| vec![DEAD.warn("database", why, "look again; read logs/postgres.log")]),
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::servers::tests::hub_of;
    use super::super::stream_state::tests::hub_stream;
    use super::*;

    #[test]
    fn drift_is_named_field_by_field_and_what_says_nothing_is_no_drift() {
        let expected = json!({"max_bytes": 10, "max_msgs": 0, "subjects": ["a"], "consumer_limits": null});
        let found = json!({"max_bytes": 10, "max_msgs": -1, "subjects": ["a"], "consumer_limits": {}, "sealed": false,
            "compression": "none", "max_waiting": 512, "metadata": {"_nats.ver": "2.15.1"}});
        assert!(drift(&expected, &found).is_empty(), "{:?}", drift(&expected, &found));
        for (field, value) in [
            ("max_bytes", json!(5)),
            ("subjects", json!(["a", "b"])),
            ("max_msgs", json!(7)),
            ("sealed", json!(true)),
            ("compression", json!("s2")),
            ("max_waiting", json!(3)),
            ("metadata", json!({"by": "hand"})),
            ("mirror", json!({"name": "X"})),
        ] {
            let mut changed = found.clone();
            changed[field] = value;
            let differences = drift(&expected, &changed);
            assert!(differences.len() == 1 && differences[0].starts_with(field), "{field}: {differences:?}");
        }
        assert_eq!(drift(&expected, &json!({})).len(), 2, "what is gone is drift");
    }

    fn copies(cluster: Value, replicas: usize) -> Level {
        let state = hub_stream(json!({}), json!({}), json!({}));
        copies_finding(&state, &json!({"cluster": cluster}), &Hub::default(), replicas).level
    }

    #[test]
    fn copies_are_there_and_up_to_date() {
        let copy = |name: &str, current: bool| json!({"name": name, "current": current, "lag": 3});
        assert_eq!(copies(json!({"leader": "hub-1"}), 1), Level::Ok);
        assert_eq!(copies(json!({}), 1), Level::Fail);
        let three = |a, b| json!({"leader": "hub-1", "replicas": [copy("hub-2", a), copy("hub-3", b)]});
        assert_eq!(copies(three(true, true), 3), Level::Ok);
        assert_eq!(copies(three(true, false), 3), Level::Warn);
        assert_eq!(copies(three(false, false), 3), Level::Fail);
        assert_eq!(copies(json!({"leader": "hub-1"}), 3), Level::Warn);
        let offline = json!({"leader": "hub-1", "replicas": [{"name": "hub-2", "current": true, "offline": true}, copy("hub-3", true)]});
        assert_eq!(copies(offline, 3), Level::Warn);
    }

    #[test]
    fn a_copy_that_its_leader_calls_current_is_none_when_its_own_server_says_otherwise() {
        let state = hub_stream(json!({}), json!({}), json!({}));
        let copy = |name: &str| json!({"name": name, "current": true});
        let info = json!({"cluster": {"leader": "hub-1", "replicas": [copy("hub-2"), copy("hub-3")]}});
        let check = |hub: Hub, level, found: &str| {
            let finding = copies_finding(&state, &info, &hub, 3);
            assert_eq!((finding.level, finding.found.as_str()), (level, found));
        };
        let well = || json!({"status": "ok"});
        let ill = json!({"status": "unavailable", "errors": [{"stream": "RESULTS", "error": "not current"}]});
        let health = |second: Value, third: Value| hub_of([[well(), second, third], [json!({}), json!({}), json!({})]]);
        check(health(well(), well()), Level::Ok, "3, led by hub-1");
        check(health(well(), ill.clone()), Level::Warn, "hub-3 says of itself: not current");
        let both = "hub-2 says of itself: not current; hub-3 says of itself: not current";
        check(health(ill.clone(), ill), Level::Fail, both);
        let elsewhere = json!({"status": "unavailable", "errors": [{"stream": "BACKFILL", "error": "not current"}]});
        check(health(well(), elsewhere), Level::Ok, "3, led by hub-1");
        let no_contact = json!({"status": "unavailable", "error": "no contact with a meta leader"});
        check(health(well(), no_contact), Level::Warn, "hub-3 says of itself: no contact with a meta leader");
        let held = |count: u64| json!({"streams": count});
        let emptied = hub_of([[well(), well(), well()], [held(2), held(2), held(0)]]);
        check(emptied, Level::Warn, "hub-3 holds 0 of 2 streams");
        let mut silent = health(well(), well());
        silent.health.pop();
        check(silent, Level::Warn, "hub-3 says nothing of itself");
    }

    fn progress(consumer: Value) -> Vec<Level> {
        progress_findings("hub RESULTS", &consumer, "look").iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn what_is_delivered_and_never_acknowledged_is_stranded() {
        let consumer = |pending: u64, floor: &str, redelivered: u64| {
            json!({"num_ack_pending": pending, "num_redelivered": redelivered, "ack_floor": {"last_active": floor},
                "created": "2026-01-01T00:00:00Z", "ts": "2026-01-01T00:10:30Z"})
        };
        let earlier = "2026-01-01T00:09:00Z";
        assert_eq!(progress(consumer(0, earlier, 0)), [Level::Ok, Level::Ok]);
        assert_eq!(progress(consumer(5, "2026-01-01T00:10:00Z", 0)), [Level::Ok, Level::Ok]);
        assert_eq!(progress(consumer(5, earlier, 2)), [Level::Warn, Level::Warn]);
        // Never acknowledged anything since it was made.
        assert_eq!(
            progress(json!({"num_ack_pending": 1, "created": "2026-01-01T00:00:00Z",
            "ts": "2026-01-01T00:10:30Z"})),
            [Level::Fail, Level::Ok]
        );
    }

    #[test]
    fn a_stream_that_is_not_there_is_a_failure() {
        let finding =
            configuration_finding(&STREAM, "hub RESULTS", &Err("stream not found".into()), &json!({}), "restart");
        assert_eq!((finding.level, finding.found.as_str()), (Level::Fail, "stream not found"));
        let undecided = Err("JetStream system temporarily unavailable".into());
        assert_eq!(configuration_finding(&CONSUMER, "hub RESULTS", &undecided, &json!({}), "").level, Level::Skip);
    }
}
