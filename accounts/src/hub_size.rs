//! How many servers a hub has: one, or three of which any two decide. Nothing else is a hub.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of servers of a hub, which is also the number of copies of each of its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "usize", into = "usize")]
pub enum HubSize {
    #[default]
    One,
    Three,
}

/// A number of servers that no hub has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} servers make no hub: write 1, or 3, of which any two decide while the third is away (two servers would have to \
     be up both, and stop more often than one)"
)]
pub struct HubSizeError(String);

impl HubSize {
    /// Servers, and copies of each stream.
    #[must_use]
    pub fn servers(self) -> usize {
        match self {
            Self::One => 1,
            Self::Three => 3,
        }
    }

    /// What the server of a number is called among servers, such as `hub-1`. Its votes go by it.
    #[must_use]
    pub fn server_name(number: usize) -> String {
        format!("hub-{number}")
    }

    /// The numbers of its servers, from 1.
    #[must_use]
    pub fn numbers(self) -> RangeInclusive<usize> {
        1..=self.servers()
    }
}

impl fmt::Display for HubSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("one server"),
            Self::Three => f.write_str("three servers"),
        }
    }
}

impl FromStr for HubSize {
    type Err = HubSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "1" => Ok(Self::One),
            "3" => Ok(Self::Three),
            other => Err(HubSizeError(other.to_owned())),
        }
    }
}

impl TryFrom<usize> for HubSize {
    type Error = HubSizeError;

    fn try_from(servers: usize) -> Result<Self, Self::Error> {
        servers.to_string().parse()
    }
}

impl From<HubSize> for usize {
    fn from(size: HubSize) -> Self {
        size.servers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_has_one_server_or_three() {
        for (text, expected) in [("1", Some(HubSize::One)), ("3", Some(HubSize::Three))] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        for text in ["", "0", "2", "4", "03", " 3", "three", "-1"] {
            let error = text.parse::<HubSize>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("write 1, or 3"), "{error}");
        }
    }

    #[test]
    fn it_is_written_as_a_number_and_another_number_is_not_read() {
        assert_eq!(serde_json::to_string(&HubSize::Three).unwrap(), "3");
        assert_eq!(serde_json::from_str::<HubSize>("1").unwrap(), HubSize::One);
        assert!(serde_json::from_str::<HubSize>("2").is_err());
    }
}
