//! What the hub's servers say of themselves: everybody is asked at once, and each answer is kept by the server's name.

use bulkhead_bus::question::ServerQuestion;
use bulkhead_runtime::{Answer, Bus, Chain, now_ms};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::reach::QUESTION_LIMIT;

/// What a server's clock said, and between which of our own times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SaidTime {
    pub(super) asked_ms: i64,
    pub(super) said_ms: i64,
    pub(super) received_ms: i64,
}

impl SaidTime {
    /// By how much the other clock is ahead at least; negative when it is behind, zero when it may be right.
    pub(super) fn ahead_ms(self) -> i64 {
        (self.said_ms - self.received_ms).max(0) + (self.said_ms - self.asked_ms).min(0)
    }
}

/// One server's answer to one question.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) server: String,
    pub(super) version: String,
    pub(super) time: Option<SaidTime>,
    pub(super) data: Value,
}

fn unix_ms(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// A time as servers write it; `None` for what is none and for Go's zero time.
pub(super) fn time_ms(value: &Value) -> Option<i64> {
    value.as_str().and_then(unix_ms).filter(|&ms| ms > 0)
}

fn read(answer: &Answer) -> Option<Said> {
    let mut body: Value = serde_json::from_slice(&answer.body).ok()?;
    let server = &body["server"];
    let said_ms = time_ms(&server["time"]);
    let time = said_ms.map(|said_ms| SaidTime { asked_ms: answer.asked_ms, said_ms, received_ms: answer.received_ms });
    Some(Said {
        server: server["name"].as_str()?.to_owned(),
        version: server["ver"].as_str().unwrap_or_default().to_owned(),
        time,
        data: body["data"].take(),
    })
}

/// Asks every server one thing; `expected` is how many there should be.
pub(super) async fn ask(
    system: &Bus,
    question: ServerQuestion,
    about: Value,
    expected: usize,
) -> Result<Vec<Said>, String> {
    let body = about.to_string().into_bytes();
    let asked = system.survey(question.subject(), body.into(), expected, QUESTION_LIMIT).await;
    let answers = asked.map_err(|error| Chain(&error).to_string())?;
    Ok(answers.iter().filter_map(read).collect())
}

/// The same of one account, for asking about many: it ends with the last of the `expected` answers.
pub(super) async fn ask_account(system: &Bus, account: &str, expected: usize) -> Result<Vec<Said>, String> {
    let body = json!({"account": account}).to_string().into_bytes();
    let asked_ms = now_ms();
    let asked = system.request_all(ServerQuestion::Accounts.subject(), body.into(), expected, QUESTION_LIMIT).await;
    let bodies = asked.map_err(|error| Chain(&error).to_string())?;
    Ok(bodies.into_iter().filter_map(|body| read(&Answer { body, asked_ms, received_ms: now_ms() })).collect())
}

/// All that was said.
#[derive(Debug, Default)]
pub(super) struct Hub {
    pub(super) settings: Vec<Said>,
    pub(super) health: Vec<Said>,
    pub(super) jetstream: Vec<Said>,
    pub(super) leaves: Vec<Said>,
}

impl Hub {
    pub(super) async fn ask(system: &Bus, expected: usize) -> Result<Self, String> {
        let (settings, health, jetstream, leaves) = tokio::join!(
            ask(system, ServerQuestion::Settings, json!({}), expected),
            ask(system, ServerQuestion::Health, json!({"details": true}), expected),
            ask(system, ServerQuestion::JetStream, json!({}), expected),
            ask(system, ServerQuestion::Leaves, json!({}), expected),
        );
        Ok(Self { settings: settings?, health: health?, jetstream: jetstream?, leaves: leaves? })
    }

    /// What is wrong with a server's copy of `stream` by its own word; `None` too when nobody could be asked.
    pub(super) fn own_word(&self, server: &str, stream: &str) -> Option<String> {
        if self.health.is_empty() {
            return None;
        }
        let of = |all: &[Said]| all.iter().find(|said| said.server == server).map(|said| said.data.clone());
        let Some(health) = of(&self.health) else { return Some("says nothing of itself".to_owned()) };
        if let Some(wrong) = complaint(&health, stream) {
            return Some(format!("says of itself: {wrong}"));
        }
        // An emptied server is well until it hears of what it should have.
        let held = |data: &Value| data["streams"].as_u64();
        let most = self.jetstream.iter().filter_map(|said| held(&said.data)).max()?;
        let own = held(&of(&self.jetstream)?)?;
        (own < most).then(|| format!("holds {own} of {most} streams"))
    }
}

/// Of a server's health, what is about `stream` or about no stream in particular.
fn complaint(health: &Value, stream: &str) -> Option<String> {
    if health["status"] == "ok" {
        return None;
    }
    let errors = health["errors"].as_array().map_or(&[][..], Vec::as_slice);
    if errors.is_empty() {
        let why = health["error"].as_str().or(health["status"].as_str());
        return Some(why.unwrap_or("no status").to_owned());
    }
    let is_about = |error: &&Value| error["stream"].as_str().is_none_or(|other| other.is_empty() || other == stream);
    let texts: Vec<&str> = errors.iter().filter(is_about).filter_map(|error| error["error"].as_str()).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the servers of a hub of three say: of their health, and of JetStream.
    pub(in crate::doctor) fn hub_of([health, jetstream]: [[Value; 3]; 2]) -> Hub {
        let of =
            |number: usize, data| Said { server: format!("hub-{number}"), version: String::new(), time: None, data };
        let said = |data: [Value; 3]| (1..).zip(data).map(|(number, data)| of(number, data)).collect();
        Hub { health: said(health), jetstream: said(jetstream), ..Hub::default() }
    }

    #[test]
    fn a_clock_may_be_right_as_long_as_it_lies_between_question_and_answer() {
        let ahead = |asked_ms, said_ms, received_ms| SaidTime { asked_ms, said_ms, received_ms }.ahead_ms();
        assert_eq!(ahead(1_000, 1_005, 1_010), 0);
        assert_eq!(ahead(1_000, 4_010, 1_010), 3_000);
        assert_eq!(ahead(1_000, 400, 1_010), -600);
    }

    #[test]
    fn an_answer_is_read_with_its_server_and_rubbish_is_left_out() {
        let body = r#"{"server":{"name":"hub-1","ver":"2.15.1","time":"1970-01-01T00:00:05.5Z"},"data":{"port":1}}"#;
        let answer = |body: &str| Answer { body: body.to_owned().into(), asked_ms: 1, received_ms: 2 };
        let said = read(&answer(body)).unwrap();
        assert_eq!((said.server.as_str(), said.version.as_str()), ("hub-1", "2.15.1"));
        assert_eq!(said.time.unwrap().said_ms, 5_500);
        assert_eq!(said.data["port"], 1);
        assert!(read(&answer("{}")).is_none() && read(&answer("no json")).is_none());
        assert_eq!(time_ms(&json!("0001-01-01T00:00:00Z")), None);
    }
}
