//! Rows on standard output: a table for people, one JSON object a line for programs.

use std::io::Write;
use std::time::Duration;

use comfy_table::{Table, TableStyle};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::exit::Failure;

/// A row that people can read.
pub(super) trait Row: Serialize {
    const HEADER: &'static [&'static str];
    fn cells(&self, now_ms: i64) -> Vec<String>;
}

/// Writes lines to standard output. When the reader has gone the command ends quietly.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn write_lines(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        Err(error) => Err(Failure::failed(error)),
        Ok(()) => Ok(()),
    }
}

pub(super) fn table<T: Row>(rows: &[T], now_ms: i64) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(T::HEADER.iter().copied());
    for row in rows {
        table.add_row(row.cells(now_ms));
    }
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n", lines.join("\n"))
}

pub(super) fn json_lines<T: Serialize>(rows: &[T]) -> Result<String, Failure> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row).map_err(Failure::failed)?);
        text.push('\n');
    }
    Ok(text)
}

/// Prints rows, or says that there are none.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn print_rows<T: Row>(rows: &[T], is_json: bool, now_ms: i64) -> Result<(), Failure> {
    print_rows_or("nothing to show", rows, is_json, now_ms)
}

/// Prints rows, or `none` to people when there are none.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn print_rows_or<T: Row>(none: &str, rows: &[T], is_json: bool, now_ms: i64) -> Result<(), Failure> {
    let text = if is_json {
        json_lines(rows)?
    } else if rows.is_empty() {
        format!("{none}\n")
    } else {
        table(rows, now_ms)
    };
    write_lines(&text)
}

/// `14:03:05` of today, or with its date; UTC.
pub(super) fn moment(unix_ms: i64, now_ms: i64) -> String {
    let at = |ms: i64| OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok();
    let Some((time, now)) = at(unix_ms).zip(at(now_ms)) else { return "?".to_owned() };
    let shown = if time.date() == now.date() {
        time.format(format_description!("[hour]:[minute]:[second]"))
    } else {
        time.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second]"))
    };
    shown.unwrap_or_else(|_| "?".to_owned())
}

/// How long ago: `3s`, `5m`, `2h`, `4d`.
pub(super) fn age(unix_ms: i64, now_ms: i64) -> String {
    let seconds = (now_ms - unix_ms).max(0) / 1_000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub(super) fn latency(latency_us: Option<u32>) -> String {
    match latency_us {
        None => "-".to_owned(),
        Some(us) => format!("{}.{:02} ms", us / 1_000, us % 1_000 / 10),
    }
}

/// How long: `1h 2m 3s`.
pub(super) fn lasting(ms: Option<i64>) -> String {
    let Some(ms) = ms else { return "-".to_owned() };
    let sign = if ms < 0 { "-" } else { "" };
    format!("{sign}{}", humantime::format_duration(Duration::from_millis(ms.unsigned_abs())))
}

/// What is not all never reads as all.
pub(super) fn percent(percent: Option<f64>) -> String {
    match percent {
        None => "unknown".to_owned(),
        Some(percent) if percent < 100.0 => format!("{:.3} %", percent.min(99.999)),
        Some(_) => "100 %".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_latencies_read_well() {
        assert_eq!(latency(Some(1_239)), "1.23 ms");
        assert_eq!(latency(Some(45)), "0.04 ms");
        assert_eq!(age(0, 61_000), "61s");
        assert_eq!(age(0, 86_400_000), "24h");
        assert_eq!(age(5_000, 0), "0s");
        assert_eq!(moment(0, 3_600_000), "00:00:00");
        assert_eq!(moment(0, 86_400_000), "1970-01-01 00:00:00");
        assert_eq!(moment(i64::MAX, 0), "?");
        assert_eq!(lasting(Some(3_723_004)), "1h 2m 3s 4ms");
        assert_eq!([lasting(Some(-1_000)), lasting(Some(0)), lasting(None)], ["-1s", "0s", "-"]);
        let shares = [Some(100.0), Some(99.99999), Some(99.9), Some(0.0), None].map(percent);
        assert_eq!(shares, ["100 %", "99.999 %", "99.900 %", "0.000 %", "unknown"]);
    }
}
