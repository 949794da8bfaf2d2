//! Message headers, and which of them are never a sender's to set.

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bulkhead_bus::header;

/// Message headers, without naming the client library.
#[derive(Debug, Clone, Default)]
pub struct Headers(pub(crate) HeaderMap);

impl Headers {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(async_nats::HeaderValue::as_str)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name, value);
    }

    /// Without those that the server acts on: they are never a sender's to set.
    #[must_use]
    pub fn without_server_headers(&self) -> Self {
        let is_ours = |name: &str| !name.to_ascii_lowercase().starts_with(&header::SERVER_PREFIX.to_ascii_lowercase());
        let mut kept = HeaderMap::new();
        for (name, values) in self.0.iter().filter(|(name, _)| is_ours(name.as_ref())) {
            for value in values {
                kept.append(name.clone(), value.clone());
            }
        }
        Self(kept)
    }

    /// From lines as [`Self::to_text`] writes them; what is none is left out.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let mut headers = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            // What no message could carry is as good as missing.
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                headers.0.append(name, value);
            }
        }
        headers
    }

    /// One line a header, for records of messages that could not be read.
    #[must_use]
    pub fn to_text(&self) -> String {
        // In one order: the map has another one at each delivery, and this text identifies the message.
        let mut headers: Vec<_> = self.0.iter().collect();
        headers.sort_by(|(one, _), (other, _)| AsRef::<str>::as_ref(*one).cmp(other.as_ref()));
        let lines =
            headers.into_iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")));
        lines.collect::<Vec<_>>().join("\n")
    }
}
