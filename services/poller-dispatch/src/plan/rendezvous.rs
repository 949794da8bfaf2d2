//! Scores that each process computes alike: whoever has the highest gets it, and nobody else's change changes that.

/// FNV-1a with a finalizer, written out because a plan must be the same in every process, version and build.
pub(super) fn hash_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // A byte that is in no name keeps `ab, c` and `a, bc` apart.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    mix(hash)
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Strictly between 0 and 1.
#[expect(clippy::cast_precision_loss, reason = "52 bits of a hash are plenty")]
fn unit(key: u64, node: u64) -> f64 {
    let bits = mix(key ^ node.rotate_left(32)) >> 12;
    (bits as f64 + 0.5) / (1_u64 << 52) as f64
}

/// How much `node` wants `key`; a weight of twice as much wins twice as often.
pub(super) fn score(key: u64, node: u64, weight: u32) -> f64 {
    f64::from(weight) / -unit(key, node).ln()
}

/// As [`score`], where it may be more than `least`: most nodes are told apart without a logarithm.
pub(super) fn score_above(least: f64, key: u64, node: u64, weight: u32) -> Option<f64> {
    let (unit, weight) = (unit(key, node), f64::from(weight));
    // -ln(u) is never less than 1 - u.
    if weight < least * (1.0 - unit) {
        return None;
    }
    Some(weight / -unit.ln()).filter(|score| *score > least)
}

/// The first `count` of `nodes` for `key`, as long as they are there the same ones.
#[must_use]
pub fn rendezvous<'a, T>(key: &str, nodes: &'a [T], name_of: impl Fn(&T) -> &str, count: usize) -> Vec<&'a T> {
    let key = hash_parts([key]);
    let mut scored: Vec<(u64, &T)> =
        nodes.iter().map(|node| (mix(key ^ hash_parts([name_of(node)]).rotate_left(32)), node)).collect();
    scored.sort_by(|(a, one), (b, other)| b.cmp(a).then_with(|| name_of(one).cmp(name_of(other))));
    scored.into_iter().take(count).map(|(_, node)| node).collect()
}

/// A capacity as the nearest power of two from 1 to 1,024, so that small differences move nothing.
#[must_use]
pub fn quantised(capacity: u32) -> u32 {
    let capacity = capacity.clamp(1, 1_024);
    let below = 1 << capacity.ilog2();
    if capacity * 2 >= below * 3 { below * 2 } else { below }
}
