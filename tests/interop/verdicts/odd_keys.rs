//! Public keys that no key pair has.

use bulkhead_claims::KeyKind;
use data_encoding::BASE32_NOPAD;

/// The public key of small order whose signatures anybody can make.
pub(super) fn weak_key(kind: KeyKind) -> String {
    let letter = |kind| match kind {
        KeyKind::Operator => 14,
        KeyKind::Account => 0,
        KeyKind::User => 20,
        KeyKind::Server => 13,
    };
    public_key(letter(kind) << 3, &identity())
}

/// Bytes that are the coordinate of no point.
pub(super) fn no_point() -> String {
    let mut bytes = [0; 32];
    bytes[0] = 2;
    public_key(0, &bytes)
}

pub(super) fn identity() -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = 1;
    bytes
}

/// A public curve key, whose private half nobody knows.
pub(super) fn curve_key() -> String {
    public_key(23 << 3, &[9; 32])
}

fn public_key(prefix: u8, key: &[u8; 32]) -> String {
    let mut bytes = vec![prefix];
    bytes.extend(key);
    let checksum = checksum(&bytes);
    bytes.extend(checksum.to_le_bytes());
    BASE32_NOPAD.encode(&bytes)
}

/// CRC-16 as XMODEM has it.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(
            sum ^ (u16::from(*byte) << 8),
            |sum, _| {
                if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 }
            },
        )
    })
}
