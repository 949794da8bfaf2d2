//! Numbers on the command line: refused with the rule, in our own words.

use std::ops::RangeInclusive;

/// Why a text is not a number that fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a whole number from {least} to {most}")]
pub(super) struct NumberError {
    least: u64,
    most: u64,
}

/// A reader of whole numbers in `range`.
pub(super) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, NumberError> + Clone {
    move |text: &str| {
        let error = || NumberError { least: *range.start(), most: *range.end() };
        let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_in_its_range_or_refused_with_it() {
        let read = |text: &str| whole::<u32>(1..=1_000)(text);
        assert_eq!([read("1"), read("1000")], [Ok(1), Ok(1_000)]);
        for bad in ["0", "1001", "-1", "abc", "", "1.5", "99999999999999999999"] {
            assert_eq!(read(bad).unwrap_err().to_string(), "write a whole number from 1 to 1000", "{bad:?}");
        }
    }
}
