//! Commands about the servers of the hub of this machine's deployment, which they ask themselves.

use std::path::Path;
use std::time::Duration;

use bulkhead_runtime::{Bus, now_ms};

use super::exit::Failure;
use super::show::{Row, print_rows};
use crate::hub_state::{ServerState, hub_state, wait_until_whole};
use crate::profile::Profile;
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
    let profile = Profile::read(&layout.profile("ops")).map_err(|error| Failure::invalid("profile", error))?;
    Ok(Bus::connect(&system_settings(layout, profile.urls), "bulkhead").await?)
}

pub(super) async fn show_hub(home: &Path, is_json: bool) -> Result<(), Failure> {
    let layout = Layout::new(home.to_owned());
    let size = hub_size(&layout)?;
    let states = hub_state(&connect(&layout).await?, size).await;
    print_rows(&states, is_json, now_ms())
}

pub(super) async fn wait_for_hub(home: &Path, limit_s: u64, is_json: bool) -> Result<(), Failure> {
    let layout = Layout::new(home.to_owned());
    let size = hub_size(&layout)?;
    let whole = wait_until_whole(&connect(&layout).await?, size, Duration::from_secs(limit_s)).await;
    let states = whole.map_err(|error| Failure::not_ready(error.to_string()))?;
    print_rows(&states, is_json, now_ms())
}
