//! Several batches in one message. A hub that writes every message to its disk before it acknowledges it then writes once
//! for all of them; each batch keeps its own headers and bytes, so that its signature holds as before.
//!
//! A message with the header [`HEADER`] is a sequence of parts, each a length and header lines, then a length and the body
//! (lengths are four bytes, most significant first). What travels is one LZ4 block of it behind the length that it had (four
//! bytes, least significant first, as lz4_flex writes it). It refuses everything else.

use crate::stream::MAX_BATCH_BYTES;

/// The header of a bundle; its value is the version of the framing.
pub const HEADER: &str = "Bulkhead-Bundle";
pub const VERSION: &str = "2";
/// Parts of one bundle at most: more than fit into a message that may travel, were each of one result.
pub const PARTS_MAX: usize = 512;
/// The parts of one bundle together, at most: what is packed small must not become large in the reader's memory.
pub const BYTES_MAX: usize = MAX_BATCH_BYTES.unsigned_abs() as usize;
const LENGTH_BYTES: usize = 4;

/// What a version that is not understood is shown of, at most.
const SHOWN_CHARS: usize = 32;

/// Why a message is no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("the bundle is of version {0:?}: version {VERSION} is understood")]
    Version(String),
    #[error("the bundle is no LZ4 block of its length")]
    Packing,
    #[error("the bundle is of {0} bytes, and {BYTES_MAX} is the most")]
    Large(usize),
    #[error("the bundle ends in the middle of part {0}")]
    Short(usize),
    #[error("the headers of part {0} of the bundle are not text")]
    Headers(usize),
    #[error("the bundle has no part, or more than {PARTS_MAX}")]
    Count,
}

/// # Errors
/// When a bundle whose header has this value is of another version.
pub fn check_version(value: &str) -> Result<(), BundleError> {
    if value == VERSION { Ok(()) } else { Err(BundleError::Version(value.chars().take(SHOWN_CHARS).collect())) }
}

/// One batch: header lines as they are written down, and the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    pub headers: &'a str,
    pub body: &'a [u8],
}

impl Part<'_> {
    /// What the part takes in a bundle.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        2 * LENGTH_BYTES + self.headers.len() + self.body.len()
    }
}

/// The bytes of a bundle.
#[must_use]
pub fn encode(parts: &[Part<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(Part::encoded_bytes).sum());
    for field in parts.iter().flat_map(|part| [part.headers.as_bytes(), part.body]) {
        bytes.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(field);
    }
    bytes
}

/// The bytes that travel.
#[must_use]
pub fn pack(bundle: &[u8]) -> Vec<u8> {
    lz4_flex::compress_prepend_size(bundle)
}

/// The bytes of a bundle that came, as [`encode`] made them.
///
/// # Errors
/// When they are none, or more than [`BYTES_MAX`].
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, BundleError> {
    let (length, _) = packed.split_first_chunk::<LENGTH_BYTES>().ok_or(BundleError::Packing)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > BYTES_MAX {
        return Err(BundleError::Large(length));
    }
    let bytes = lz4_flex::decompress_size_prepended(packed).map_err(|_| BundleError::Packing)?;
    if bytes.len() == length { Ok(bytes) } else { Err(BundleError::Packing) }
}

/// Takes one field off the front.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<LENGTH_BYTES>()?;
    let (field, behind) = behind.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    *rest = behind;
    Some(field)
}

/// The parts of a bundle.
///
/// # Errors
/// When the bytes are no bundle.
pub fn decode(bytes: &[u8]) -> Result<Vec<Part<'_>>, BundleError> {
    let mut rest = bytes;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let place = parts.len();
        if place == PARTS_MAX {
            return Err(BundleError::Count);
        }
        let headers = field(&mut rest).ok_or(BundleError::Short(place))?;
        let headers = std::str::from_utf8(headers).map_err(|_| BundleError::Headers(place))?;
        let body = field(&mut rest).ok_or(BundleError::Short(place))?;
        parts.push(Part { headers, body });
    }
    if parts.is_empty() { Err(BundleError::Count) } else { Ok(parts) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_together_comes_apart(parts in proptest::collection::vec((".{0,40}", any::<Vec<u8>>()), 1..20)) {
            let parts: Vec<Part<'_>> = parts.iter().map(|(headers, body)| Part { headers, body }).collect();
            let bytes = encode(&parts);
            prop_assert_eq!(bytes.len(), parts.iter().map(Part::encoded_bytes).sum::<usize>());
            prop_assert_eq!(decode(&bytes).unwrap(), parts);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
            let _ = unpack(&bytes);
        }

        #[test]
        fn what_is_packed_is_unpacked_and_what_is_cut_or_changed_does_not_grow(
            bytes in proptest::collection::vec(any::<u8>(), 0..2_000), place in any::<prop::sample::Index>(), by in 1_u8..,
        ) {
            let packed = pack(&bytes);
            prop_assert_eq!(unpack(&packed), Ok(bytes));
            let place = place.index(packed.len());
            prop_assert!(unpack(&packed[..place]).is_err());
            let mut changed = packed;
            changed[place] ^= by;
            prop_assert!(unpack(&changed).map_or(0, |bytes| bytes.len()) <= BYTES_MAX);
        }

        #[test]
        fn a_bundle_that_was_cut_is_none(cut in 1_usize..30) {
            let bytes = encode(&[Part { headers: "a: b", body: b"0123456789" }, Part { headers: "", body: b"01234" }]);
            let cut = &bytes[..bytes.len() - cut];
            // Cut between two parts it is a shorter bundle.
            prop_assert!(decode(cut).is_err() || cut.len() == 22);
        }
    }

    #[test]
    fn another_version_is_named_and_not_read() {
        assert_eq!(check_version(VERSION), Ok(()));
        for value in ["1", "", "2 ", "02"] {
            assert_eq!(check_version(value), Err(BundleError::Version(value.to_owned())));
        }
        let shown = check_version("1").unwrap_err().to_string();
        assert_eq!(shown, "the bundle is of version \"1\": version 2 is understood");
        assert!(check_version(&"9".repeat(60_000)).unwrap_err().to_string().len() < 100);
    }

    #[test]
    fn a_small_message_does_not_become_a_large_one() {
        let largest = vec![b'x'; BYTES_MAX];
        let packed = pack(&largest);
        assert!(packed.len() < 1_000, "{}", packed.len());
        assert_eq!(unpack(&packed).map(|bytes| bytes.len()), Ok(BYTES_MAX));
        let larger = vec![b'x'; BYTES_MAX + 1];
        assert_eq!(unpack(&pack(&larger)), Err(BundleError::Large(BYTES_MAX + 1)));
        // A length that is not the block's.
        let mut false_length = pack(&larger);
        false_length[..LENGTH_BYTES].copy_from_slice(&1_000_u32.to_le_bytes());
        assert_eq!(unpack(&false_length), Err(BundleError::Packing));
        assert_eq!(unpack(b"abc"), Err(BundleError::Packing));
    }

    #[test]
    fn limits_hold() {
        assert_eq!(decode(b""), Err(BundleError::Count));
        let part = Part { headers: "", body: b"" };
        assert!(decode(&encode(&[part; PARTS_MAX])).is_ok());
        assert_eq!(decode(&encode(&[part; PARTS_MAX + 1])), Err(BundleError::Count));
        assert_eq!(decode(&[0, 0, 0, 1, 0xff, 0, 0, 0, 0]), Err(BundleError::Headers(0)));
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), Err(BundleError::Short(0)));
    }
}
