//! Where our verdict is another one on purpose. `docs/nsc.md` names those that an operator may meet.

use super::Verdict;
use Verdict::{Invalid, NotNow, Refused, Valid};

/// Cases with the same two verdicts for the same reason.
pub(super) struct Difference {
    pub(super) why: &'static str,
    pub(super) ours: Verdict,
    pub(super) theirs: Verdict,
    pub(super) cases: &'static [&'static str],
}

pub(super) const DIFFERENCES: [Difference; 9] = [
    Difference {
        why: "a token is one text: line breaks and bits that stand for nothing would make several of it",
        ours: Refused,
        theirs: Valid,
        cases: &[
            "with a line break behind it",
            "with bits behind the signature",
            "account of an issuer with a line break",
        ],
    },
    Difference {
        why: "version 1 is not read any more, nor its algorithm",
        ours: Refused,
        theirs: Valid,
        cases: &["with the algorithm of version 1 only", "of version 1 as it was"],
    },
    Difference {
        why: "Go reads names without regard to case and mixes what is said twice: whoever compares names would not see it",
        ours: Refused,
        theirs: Valid,
        cases: &[
            "with header members in other letters",
            "with a member twice",
            "with a member twice and a null",
            "with two bodies that Go mixes",
        ],
    },
    Difference {
        why: "as before, and what it says there is out of time",
        ours: Refused,
        theirs: NotNow,
        cases: &["with members in other letters"],
    },
    Difference {
        why: "as before, and what it says there is wrong",
        ours: Refused,
        theirs: Invalid,
        cases: &["with deep members in other letters", "with a long s in a member"],
    },
    Difference {
        why: "what cannot be carried along unchanged when the claims are signed again is not taken",
        ours: Refused,
        theirs: Valid,
        cases: &[
            "with an unknown number beyond all",
            "with an unknown member nested deeply",
            "with half a character",
            "with bytes that are no UTF-8",
            "user with a null among its tags",
            "account with a number as signing key",
            "account with a null as signing key",
        ],
    },
    Difference {
        why: "what is bad anyway is bad when it is read: there is no value for it",
        ours: Refused,
        theirs: Invalid,
        cases: &[
            "operator with a null as signing key",
            "user with a null as time",
            "account with unknown traffic",
            "export of no type",
            "export that is null",
            "export of an unknown response",
            "import of no type",
            "import that is null",
        ],
    },
    Difference {
        why: "a public key is exactly its 56 characters",
        ours: Invalid,
        theirs: Valid,
        cases: &["operator with a line break in a key"],
    },
    Difference {
        why: "nobody can sign with a key that is no point of the curve",
        ours: Invalid,
        theirs: Valid,
        cases: &["account with a signing key that is no point"],
    },
];
