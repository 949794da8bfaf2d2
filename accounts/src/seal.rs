//! The first line of a settings file that was rendered: it seals the rest, so that an edit by hand can be told.
//!
//! It protects against forgetting, not against anybody: whoever can edit the file can seal it anew.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

const SEAL: &str = "# Rendered by bulkhead; the next start overwrites an edit. sha256:";

/// Whether a file is as it was rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    Whole,
    Broken,
    /// It was rendered by a release that did not seal, or by somebody else.
    Never,
}

/// `text` under a line that seals it. The line is a comment in TOML.
#[must_use]
pub fn seal(text: &str) -> String {
    format!("{SEAL}{}\n{text}", HEXLOWER.encode(&Sha256::digest(text)))
}

#[must_use]
pub fn sealed(text: &str) -> Sealed {
    let Some((digest, rest)) = text.strip_prefix(SEAL).and_then(|text| text.split_once('\n')) else {
        return Sealed::Never;
    };
    if digest == HEXLOWER.encode(&Sha256::digest(rest)) { Sealed::Whole } else { Sealed::Broken }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_breaks_the_seal() {
        let text = seal("a = 1\nb = 2\n");
        assert_eq!(sealed(&text), Sealed::Whole);
        assert_eq!(sealed(&text.replace("b = 2", "b = 3")), Sealed::Broken);
        assert_eq!(sealed(&format!("{text}c = 3\n")), Sealed::Broken);
        assert_eq!(sealed("a = 1\n"), Sealed::Never);
        assert!(toml::from_str::<toml::Table>(&text).is_ok_and(|table| table.len() == 2));
    }
}
