//! Commands about the servers of the hub of this machine's deployment, which they ask themselves.

use std::path::Path;
use std::time::Duration;

use bulkhead_runtime::{Bus, now_ms};

use super::exit::{DONE, FAILURES, Failure, WARNINGS};
use super::show::{Row, print_rows};
use crate::hub_state::{ServerState, hub_state, wait_until_whole};
use crate::tenancy::PlatformSettings;
use crate::up::{Layout, hub_size, system_settings};

impl Row for ServerState {
    const HEADER: &'static [&'static str] = &["SERVER", "VERSION", "STATE", "LEADS", "STREAMS", "MESSAGES"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        vec![
            self.server.clone(),
            or_dash(&self.version),
            self.missing.clone().unwrap_or_else(|| "has everything".to_owned()),
            or_dash(if self.leads { "yes" } else { "" }),
            self.streams.to_string(),
            self.messages.to_string(),
        ]
    }
}

async fn connect(layout: &Layout) -> Result<Bus, Failure> {
    let settings = PlatformSettings::read(layout).map_err(|error| Failure::invalid("platform", error))?;
    Ok(Bus::connect(&system_settings(layout, settings.hub_urls), "bulkhead").await?)
}

pub(super) async fn show_hub(home: &Path, is_json: bool) -> Result<(), Failure> {
    let layout = Layout::new(home.to_owned());
    let size = hub_size(&layout)?;
    let states = hub_state(&connect(&layout).await?, size).await;
    print_rows(&states, is_json, now_ms())?;
    match code(&states) {
        DONE => Ok(()),
        code => Err(Failure::silent(code)),
    }
}

/// A hub stores as long as more than half of its servers are whole.
fn code(states: &[ServerState]) -> u8 {
    match states.iter().filter(|state| state.missing.is_none()).count() {
        whole if whole == states.len() => DONE,
        whole if whole * 2 > states.len() => WARNINGS,
        _ => FAILURES,
    }
}

pub(super) async fn wait_for_hub(home: &Path, limit_s: u64, is_json: bool) -> Result<(), Failure> {
    let layout = Layout::new(home.to_owned());
    let size = hub_size(&layout)?;
    let whole = wait_until_whole(&connect(&layout).await?, size, Duration::from_secs(limit_s)).await;
    let states = whole.map_err(|error| Failure::not_ready(error.to_string()))?;
    print_rows(&states, is_json, now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_says_whether_the_hub_is_whole_and_whether_it_stores() {
        let code_of = |whole: &[bool]| {
            let state = |is_whole: &bool| ServerState {
                server: "hub-1".to_owned(),
                version: String::new(),
                missing: (!is_whole).then(|| "it does not answer".to_owned()),
                leads: false,
                streams: 0,
                messages: 0,
            };
            code(&whole.iter().map(state).collect::<Vec<_>>())
        };
        assert_eq!([code_of(&[true]), code_of(&[true, true, true])], [DONE, DONE]);
        assert_eq!(code_of(&[true, false, true]), WARNINGS);
        assert_eq!([code_of(&[false]), code_of(&[true, false, false])], [FAILURES, FAILURES]);
    }
}
