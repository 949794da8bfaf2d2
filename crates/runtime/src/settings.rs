//! Settings of a service: compiled defaults, then a file, then `PREFIX_NAME__KEY`. A typo stops the start.

use std::path::Path;

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::de::DeserializeOwned;

/// The exit code for bad settings (EX_USAGE).
pub const EXIT_SETTINGS: u8 = 64;

/// Every setting that is wrong, one a line.
#[derive(Debug, thiserror::Error)]
#[error("settings are not valid:\n{}", .0.join("\n"))]
pub struct SettingsError(pub Vec<String>);

/// Loads settings: `defaults` is the service's `config.default.toml`, `prefix` is like `BULKHEAD_CORE_`.
///
/// # Errors
/// When the file is missing, a key is unknown or missing, or a value is of the wrong kind; the message names each.
pub fn load_settings<T: DeserializeOwned>(
    defaults: &str,
    file: Option<&Path>,
    prefix: &str,
) -> Result<T, SettingsError> {
    let mut figment = Figment::from(Toml::string(defaults));
    if let Some(path) = file {
        if !path.is_file() {
            let line = format!("  settings file {} does not exist: name an existing file", path.display());
            return Err(SettingsError(vec![line]));
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    figment = figment.merge(Env::prefixed(prefix).split("__"));
    figment.extract().map_err(|errors| SettingsError(errors.into_iter().map(|error| format!("  {error}")).collect()))
}

/// A line for each setting whose value is not from the least to the most that it may be.
#[must_use]
pub fn out_of_range(ranges: &[(&str, i128, i128, i128)]) -> Vec<String> {
    let wrong = ranges.iter().filter(|(_, value, least, most)| value < least || value > most);
    wrong.map(|(name, value, least, most)| format!("  {name} is {value}: it must be {least} to {most}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        limit: u32,
    }

    #[test]
    fn a_typo_is_named_and_a_missing_file_too() {
        let sample: Sample = load_settings("limit = 3", None, "BULKHEAD_SAMPLE_A_").unwrap();
        assert_eq!(sample.limit, 3);
        let error = load_settings::<Sample>("limit = 3\nlimti = 4", None, "BULKHEAD_SAMPLE_A_").unwrap_err();
        assert!(error.to_string().contains("limti"), "{error}");
        let error = load_settings::<Sample>("limit = \"x\"", None, "BULKHEAD_SAMPLE_A_").unwrap_err();
        assert!(error.to_string().contains("limit"), "{error}");
        let missing = Path::new("no-such-file.toml");
        let error = load_settings::<Sample>("limit = 3", Some(missing), "BULKHEAD_SAMPLE_A_").unwrap_err();
        assert!(error.to_string().contains("no-such-file.toml"), "{error}");
    }
}
