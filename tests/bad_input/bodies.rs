//! Bodies that no poller sends, each with what must become of it.

use bulkhead_runtime::now_ms;

use crate::FORGED;

const DAY_MS: i64 = 86_400_000;
/// The whole message, where a dead letter is not about one row.
pub(crate) const WHOLE: i32 = -1;

/// A body, the dead letters that come of it (row and reason), and the checks that get a row.
pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) letters: Vec<(i32, &'static str)>,
    pub(crate) stored: Vec<String>,
}

fn dead(what: &'static str, body: impl Into<Vec<u8>>, reason: &'static str) -> Case {
    Case { what, body: body.into(), letters: vec![(WHOLE, reason)], stored: vec![] }
}

/// One row as JSON; `rest` goes on behind the fields that every row has.
fn row(check: &str, slot_ms: i64, rest: &str) -> String {
    row_begun(check, slot_ms, slot_ms, rest)
}

fn row_begun(check: &str, slot_ms: i64, started_ms: i64, rest: &str) -> String {
    format!(r#"{{"check":"{check}","kind":"tcp","slot_ms":{slot_ms},"started_ms":{started_ms},"outcome":"ok"{rest}}}"#)
}

fn batch_with(fields: &str, rows: &[String]) -> String {
    format!(r#"{{{fields},"results":[{}]}}"#, rows.join(","))
}

fn batch(rows: &[String]) -> String {
    batch_with(r#""version":1,"tenant":"acme-corp","site":"oslo","poller":"p1""#, rows)
}

/// Bytes that are no batch at all. `way` keeps the two ways of sending apart.
fn undecodable(way: &str) -> Vec<Case> {
    let whole = batch(&[row(&format!("{FORGED}half"), now_ms(), "")]);
    let bad = |what, body: String| dead(what, body, "not_decodable");
    let fields = |from: &str, to: &str| whole.replacen(from, to, 1);
    let name = |bad: &str| fields(&format!("\"{FORGED}half\""), &format!("\"{bad}\""));
    vec![
        dead("garbage", [b"\x00\xff\xfe\x01 garbage ".as_slice(), way.as_bytes()].concat(), "not_decodable"),
        dead("gzip", [b"\x1f\x8b\x08\x00".as_slice(), way.as_bytes()].concat(), "not_decodable"),
        dead("an empty body", "", "not_decodable"),
        bad("half a JSON", whole[..whole.len() / 2].to_owned()),
        bad("two bodies in one", format!("{whole}{whole}")),
        bad("a byte order mark", format!("\u{feff}{whole}")),
        bad("a null", "null".to_owned()),
        bad("an empty object", "{}".to_owned()),
        bad("a number", format!("{}", i64::MIN)),
        bad("10,000 brackets", "[".repeat(10_000)),
        bad("10,000 nested values", fields("\"ok\"", &nested(10_000))),
        bad("text that is not UTF-8", fields("oslo", "os\\ud800lo")),
        bad("a duplicate key", fields("\"version\":1", "\"version\":1,\"version\":1")),
        bad("a duplicate key in a row", fields("\"kind\":\"tcp\"", "\"kind\":\"tcp\",\"kind\":\"tcp\"")),
        bad("NUL in a name", name("a\\u0000b")),
        bad("NUL in a choice", fields("\"tcp\"", "\"tcp\\u0000\"")),
        bad("a name with a dot", name("a.b")),
        bad("a wildcard as a name", name(">")),
        bad("a look-alike name", name("\u{430}cme")),
        bad("a name of 300 characters", name(&"x".repeat(300))),
        bad("a negative latency", fields("\"ok\"", "\"ok\",\"latency_us\":-1")),
        bad("a latency beyond 32 bits", fields("\"ok\"", "\"ok\",\"latency_us\":4294967296")),
        bad("a fraction of a latency", fields("\"ok\"", "\"ok\",\"latency_us\":1.5")),
        bad("a number beyond all floats", fields("\"ok\"", "\"ok\",\"latency_us\":1e400")),
        bad("a generation beyond 64 bits", fields("\"ok\"", "\"ok\",\"generation\":9223372036854775808")),
        bad("a version beyond 16 bits", fields("\"version\":1", "\"version\":65537")),
        bad("a negative version", fields("\"version\":1", "\"version\":-1")),
    ]
}

/// An outcome with a detail of so many levels.
fn nested(levels: usize) -> String {
    format!("\"ok\",\"detail\":{{\"deep\":{}{}}}", "[".repeat(levels), "]".repeat(levels))
}

/// JSON of the right form that breaks a rule about the whole batch.
fn refused_whole(way: &str) -> Vec<Case> {
    let one = [row(&format!("{FORGED}whole-{way}"), now_ms(), "")];
    let of = |fields: &str| batch_with(fields, &one);
    // The short form, as otherwise so many rows are larger than what the stream takes.
    let many = vec![r#"["raw-many","tcp",1,1,"ok"]"#.to_owned(); 1_001];
    vec![
        dead("an unknown version", of(r#""version":2,"site":"oslo","poller":"p1""#), "unknown_version"),
        dead("version 0", of(r#""version":0,"site":"oslo","poller":"p1""#), "unknown_version"),
        dead("1,001 rows", batch(&many), "too_many_results"),
        dead(
            "NUL in the tenant",
            of(r#""version":1,"tenant":"acme-corp\u0000","site":"oslo","poller":"p1""#),
            "tenant_mismatch",
        ),
        dead("another site", of(r#""version":1,"site":"bergen","poller":"p1""#), "sender_mismatch"),
    ]
}

/// A batch of a single bad row.
fn bad_row(what: &'static str, row: String, reason: &'static str) -> Case {
    Case { what, body: batch(&[row]).into_bytes(), letters: vec![(0, reason)], stored: vec![] }
}

fn refused_rows(way: &str) -> Vec<Case> {
    let now = now_ms();
    let check = format!("{FORGED}row-{way}");
    let at = |slot_ms| row(&check, slot_ms, "");
    let begun = |started_ms| row_begun(&check, now, started_ms, "");
    let with = |detail: &str| row(&check, now, &format!(",\"detail\":{detail}"));
    vec![
        bad_row("the slot before all time", at(i64::MIN), "slot_too_old"),
        bad_row("the slot behind all time", at(i64::MAX), "slot_in_future"),
        bad_row("a negative slot", at(-1), "slot_too_old"),
        bad_row("slot 0", at(0), "slot_too_old"),
        bad_row("a slot ten years ago", at(now - 3_650 * DAY_MS), "slot_too_old"),
        bad_row("a slot in ten minutes", at(now + 600_000), "slot_in_future"),
        bad_row("a slot in ten years", at(now + 3_650 * DAY_MS), "slot_in_future"),
        bad_row("a start before all time", begun(i64::MIN), "bad_start"),
        bad_row("a start behind all time", begun(i64::MAX), "bad_start"),
        bad_row("a start two days late", begun(now + 2 * DAY_MS), "bad_start"),
        bad_row("NUL in a detail", with(r#"{"note":"a\u0000b"}"#), "unsafe_text"),
        bad_row("NUL in a detail's key", with(r#"{"a\u0000b":1}"#), "unsafe_text"),
        bad_row("NUL deep in a detail", with(r#"{"a":[{"b":["\u0000"]}]}"#), "unsafe_text"),
        bad_row("a large detail", with(&format!(r#"{{"note":"{}"}}"#, "x".repeat(3_000))), "detail_too_large"),
    ]
}

/// Strange, and right all the same.
fn stored(way: &str) -> Vec<Case> {
    let now = now_ms();
    let case = |what, name: &str, rest: &str, times: usize| {
        let check = format!("{FORGED}{name}-{way}");
        let rows = vec![row(&check, now, rest); times];
        Case { what, body: batch(&rows).into_bytes(), letters: vec![], stored: vec![check] }
    };
    let deep = format!(",\"new\":{}{}", "[".repeat(5_000), "]".repeat(5_000));
    vec![
        case("the same row ten times", "same", "", 10),
        case("the largest generation", "largest", ",\"generation\":9223372036854775807", 1),
        case("the smallest generation", "smallest", ",\"generation\":-9223372036854775808", 1),
        case("a duplicate key in a detail", "twice", r#","detail":{"a":1,"a":2}"#, 1),
        case("large numbers in a detail", "numbers", r#","detail":{"a":1e308,"b":123456789012345678901234567890}"#, 1),
        case("a detail of 100 levels", "levels", &nested(100)["\"ok\"".len()..], 1),
        case("5,000 levels in a field of a later release", "later", &deep, 1),
        case("markup and quotes", "markup", r#","detail":{"a":"'; drop table result; -- \\ <b> %s ${x}"}"#, 1),
        Case { what: "no rows", body: batch(&[]).into_bytes(), letters: vec![], stored: vec![] },
    ]
}

/// Good rows between bad ones.
fn mixed(way: &str) -> Case {
    let now = now_ms();
    let name = |number: u8| format!("{FORGED}mixed{number}-{way}");
    let rows = [
        row(&name(0), now, ""),
        row(&name(1), 0, ""),
        row(&name(2), now, ""),
        row(&name(3), now, r#","detail":{"note":"\u0000"}"#),
        row(&name(4), now + 3_600_000, ""),
        row(&name(5), now - 1, ""),
    ];
    let letters = vec![(1, "slot_too_old"), (3, "unsafe_text"), (4, "slot_in_future")];
    Case { what: "a mixed batch", body: batch(&rows).into_bytes(), letters, stored: [0, 2, 5].map(name).to_vec() }
}

/// Everything, told apart by `way`.
pub(crate) fn all(way: &str) -> Vec<Case> {
    let mut all = undecodable(way);
    all.extend(refused_whole(way));
    all.extend(refused_rows(way));
    all.extend(stored(way));
    all.push(mixed(way));
    all
}

/// A good batch with one row of `check`.
pub(crate) fn honest(check: &str) -> Case {
    let body = batch(&[row(check, now_ms(), "")]).into_bytes();
    Case { what: "an honest batch", body, letters: vec![], stored: vec![check.to_owned()] }
}

/// A good batch of so many rows in the usual form.
pub(crate) fn rows_of(count: usize) -> Vec<u8> {
    batch(&vec![row(&format!("{FORGED}large"), now_ms(), ""); count]).into_bytes()
}
