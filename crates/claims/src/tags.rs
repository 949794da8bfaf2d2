//! Labels of claims. A server fills `{{tag(site)}}` in with the rest of a tag that begins with `site:`.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// Each once, trimmed and in lower case. Tags of others are read as they are, so that nothing changes on re-signing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tags(Vec<String>);

impl Tags {
    /// Adds a tag unless it is there or empty.
    pub fn add(&mut self, tag: &str) {
        let tag = tag.trim().to_lowercase();
        if !tag.is_empty() && !self.0.contains(&tag) {
            self.0.push(tag);
        }
    }

    pub fn remove(&mut self, tag: &str) {
        let tag = tag.trim().to_lowercase();
        self.0.retain(|own| *own != tag);
    }

    #[must_use]
    pub fn has(&self, tag: &str) -> bool {
        self.0.contains(&tag.trim().to_lowercase())
    }

    /// The values of `<key>:<value>`, as a server would fill them in.
    pub fn values<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        let prefix = format!("{}:", key.to_lowercase());
        self.0.iter().filter_map(move |tag| tag.strip_prefix(&prefix))
    }
}

impl Deref for Tags {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl<T: AsRef<str>> FromIterator<T> for Tags {
    fn from_iter<I: IntoIterator<Item = T>>(tags: I) -> Self {
        let mut own = Self::default();
        tags.into_iter().for_each(|tag| own.add(tag.as_ref()));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_trimmed_lower_case_and_unique() {
        let tags: Tags = [" Site:Oslo ", "site:oslo", "", "x"].into_iter().collect();
        assert_eq!(&tags[..], ["site:oslo", "x"]);
        assert_eq!(tags.values("Site").collect::<Vec<_>>(), ["oslo"]);
        assert!(tags.has(" X") && !tags.has("y"));
        let read: Tags = serde_json::from_str(r#"["AsItIs "]"#).unwrap();
        assert_eq!(&read[..], ["AsItIs "]);
    }
}
