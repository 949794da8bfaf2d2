//! Who a certificate speaks for, and what the gatekeeper knows of an account. Pure: no files, no network, no clock.
//!
//! Reading order: names of authorities, what an end certificate says, whether somebody trusted said it, and the signed
//! record that binds an account to the keys which may vouch for its members (design section 3).

mod authority_name;
mod certificate;
mod chain;
mod enrolment;
mod gate;
mod gate_keys;
mod leaf_name;
mod presence;

pub use authority_name::{AuthorityName, AuthorityNameError};
pub use certificate::{
    ClientIdentity, IdentityError, TrustDomain, TrustDomainError, is_due_for_renewal, read_identity,
};
pub use chain::{ChainError, TrustedRoots, VerifiedCertificate, verify_chain};
pub use enrolment::{
    DeviceEnd, ENROL_PATH, Enrolee, EnrolmentAnswer, EnrolmentClaims, EnrolmentFile, EnrolmentRefusal,
    EnrolmentRequest, RENEW_PATH, REQUEST_BYTES_MOST, RenewalRequest, TOKEN_ISSUER, TokenError, proof,
};
pub use gate::{GateBody, GateError, GateRecord, GateSite, read_gate_record};
pub use gate_keys::{KeysError, open_keys, seal_keys};
pub use leaf_name::{leaf_name, site_of_leaf};
pub use presence::{Presence, Withdrawal};
