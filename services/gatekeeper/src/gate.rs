//! What the gatekeeper knows: a signed record of each account, and the keys to sign for it. A record never goes back to an
//! earlier epoch, and one that is not good leaves what was there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bulkhead_bus::{AccountKey, Role};
use bulkhead_claims::{SealingKey, Signer, SigningKey};
use bulkhead_identity::{GateError, GateRecord, KeysError, open_keys, read_gate_record};

/// Why a record or its keys were not taken. Never shows a key.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    #[error("it is not text")]
    Text,
    #[error("it is no record")]
    Record(#[source] GateError),
    #[error("it is about {found}, and lies where {expected} is kept")]
    Misplaced { expected: AccountKey, found: AccountKey },
    #[error("its epoch is {found}, and {known} was seen: a record never goes back")]
    Earlier { known: u64, found: u64 },
    #[error("another record of epoch {0} is known: one epoch is one record")]
    SameEpoch(u64),
    #[error("an authority of it vouches for {0} already, and one authority is one owner's")]
    SharedAuthority(String),
    #[error("they are no keys")]
    Keys(#[source] KeysError),
}

/// An account with what is known of it.
#[derive(Debug)]
pub struct Member {
    pub record: GateRecord,
    /// Public signing keys and authorities of earlier records: who was let in by them may still be there.
    pub former: BTreeSet<String>,
    /// By public key: those that were sent last, and those that the record names still.
    keys: BTreeMap<String, SigningKey>,
}

impl Member {
    /// The key that signs for a role: only the one that the record names.
    #[must_use]
    pub fn signer(&self, role: Role) -> Option<&dyn Signer> {
        let key = self.keys.get(self.record.keys.get(&role)?)?;
        Some(key as &dyn Signer)
    }
}

/// All accounts that may be entered.
#[derive(Debug, Default)]
pub struct Gate {
    members: HashMap<AccountKey, Member>,
    by_authority: HashMap<String, BTreeSet<AccountKey>>,
    /// Keys that came before their record.
    early: HashMap<AccountKey, BTreeMap<String, SigningKey>>,
    /// The highest epoch of each account, the removed ones too.
    epochs: HashMap<AccountKey, u64>,
}

impl Gate {
    /// Everybody whom an authority, by the hash of its key, vouches for.
    #[must_use]
    pub fn of_authority(&self, key: &str) -> Vec<&Member> {
        let accounts = self.by_authority.get(key).into_iter().flatten();
        accounts.filter_map(|account| self.members.get(account)).collect()
    }

    #[must_use]
    pub fn member(&self, account: &AccountKey) -> Option<&Member> {
        self.members.get(account)
    }

    /// The authorities that vouch for the platform's own.
    #[must_use]
    pub fn platform_authorities(&self) -> BTreeSet<String> {
        let platform = self.members.values().filter(|member| member.record.tenant.is_none());
        platform.flat_map(|member| member.record.authorities.iter().cloned()).collect()
    }

    /// How many accounts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    #[must_use]
    pub fn accounts(&self) -> Vec<AccountKey> {
        self.members.keys().cloned().collect()
    }

    /// An epoch that was seen, of a record that is gone.
    pub fn remember_epoch(&mut self, account: &AccountKey, epoch: u64) {
        let known = self.epochs.entry(account.clone()).or_default();
        *known = epoch.max(*known);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether this record is newer than what is known of its account, and all keys that it names are known.
    #[must_use]
    pub fn can_follow(&self, record: &GateRecord) -> bool {
        let Some(member) = self.members.get(&record.account) else { return false };
        record.epoch > member.record.epoch && record.keys.values().all(|key| member.keys.contains_key(key))
    }

    /// Takes a record. The same once more is taken again, and changes nothing. Says whether somebody whom the one before
    /// admitted may not be admitted any more.
    ///
    /// # Errors
    /// When it is not good, or older than what was seen; then everything stays as it is.
    pub fn take_record(
        &mut self,
        account: &AccountKey,
        value: &[u8],
        signers: &BTreeSet<String>,
    ) -> Result<bool, NotTaken> {
        let token = std::str::from_utf8(value).map_err(|_| NotTaken::Text)?;
        let record = read_gate_record(token, signers).map_err(NotTaken::Record)?;
        if record.account != *account {
            return Err(NotTaken::Misplaced { expected: account.clone(), found: record.account });
        }
        let known = self.epochs.get(account).copied().unwrap_or(0);
        let member = self.members.get(account);
        // What was removed does not come back by being said again.
        let is_gone = member.is_none() && self.epochs.contains_key(account);
        if record.epoch < known || (is_gone && record.epoch == known) {
            return Err(NotTaken::Earlier { known, found: record.epoch });
        }
        if member.is_some_and(|member| member.record.epoch == record.epoch && member.record != record) {
            return Err(NotTaken::SameEpoch(record.epoch));
        }
        for authority in &record.authorities {
            let others = self.of_authority(authority);
            let is_foreign = |member: &&&Member| {
                let is_other = member.record.account != *account;
                // Accounts of the platform share its intermediate; a tenant's is one account's alone.
                is_other && (member.record.tenant.is_some() || record.tenant.is_some())
            };
            if let Some(other) = others.iter().find(is_foreign) {
                return Err(NotTaken::SharedAuthority(other.record.account.to_string()));
            }
        }
        let (mut former, mut keys) = (BTreeSet::new(), self.early.remove(account));
        let mut is_narrower = false;
        if let Some(member) = self.remove_member(account) {
            is_narrower = record.is_narrower_than(&member.record);
            former = member.former;
            former.extend(member.record.keys.into_values().chain(member.record.authorities));
            keys = Some(member.keys);
        }
        self.epochs.insert(account.clone(), record.epoch);
        for authority in &record.authorities {
            self.by_authority.entry(authority.clone()).or_default().insert(account.clone());
        }
        self.members.insert(account.clone(), Member { record, former, keys: keys.unwrap_or_default() });
        Ok(is_narrower)
    }

    /// Takes the sealed keys of an account, before or after its record.
    ///
    /// # Errors
    /// When they were not sealed for this gatekeeper; then those that were there stay.
    pub fn take_keys(&mut self, account: &AccountKey, value: &[u8], own: &SealingKey) -> Result<(), NotTaken> {
        let opened = open_keys(value, own).map_err(NotTaken::Keys)?;
        let opened = opened.into_values().map(|key| (key.public().to_owned(), key));
        match self.members.get_mut(account) {
            Some(member) => {
                // New keys come before the record that names them: until then the present ones sign.
                let named: BTreeSet<&String> = member.record.keys.values().collect();
                member.keys.retain(|public, _| named.contains(public));
                member.keys.extend(opened);
            }
            None => drop(self.early.insert(account.clone(), opened.collect())),
        }
        Ok(())
    }

    /// Forgets what was signed by nobody of `signers`, as if it had never been said.
    pub fn drop_foreign(&mut self, signers: &BTreeSet<String>) {
        let is_foreign = |member: &&Member| !signers.contains(&member.record.signer);
        let foreign: Vec<AccountKey> =
            self.members.values().filter(is_foreign).map(|member| member.record.account.clone()).collect();
        for account in foreign {
            self.drop_record(&account);
            self.epochs.remove(&account);
        }
    }

    /// The record is gone: nobody enters this account.
    pub fn drop_record(&mut self, account: &AccountKey) {
        if let Some(member) = self.remove_member(account) {
            self.early.insert(account.clone(), member.keys);
        }
    }

    /// The keys are gone: nobody can be let into this account.
    pub fn drop_keys(&mut self, account: &AccountKey) {
        self.early.remove(account);
        if let Some(member) = self.members.get_mut(account) {
            member.keys.clear();
        }
    }

    fn remove_member(&mut self, account: &AccountKey) -> Option<Member> {
        let member = self.members.remove(account)?;
        for authority in &member.record.authorities {
            if let Some(accounts) = self.by_authority.get_mut(authority) {
                accounts.remove(account);
                if accounts.is_empty() {
                    self.by_authority.remove(authority);
                }
            }
        }
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_claims::{Claims, KeyKind, encode};
    use bulkhead_identity::{GateBody, seal_keys};

    use super::*;

    struct Place {
        operator: SigningKey,
        signers: BTreeSet<String>,
        own: SealingKey,
        gate: Gate,
    }

    impl Place {
        fn new() -> Self {
            let operator = SigningKey::generate(KeyKind::Operator);
            let signers = BTreeSet::from([operator.public().to_owned()]);
            Self { operator, signers, own: SealingKey::generate(), gate: Gate::default() }
        }

        fn take(&mut self, account: &AccountKey, body: GateBody) -> Result<bool, NotTaken> {
            let mut claims = Claims::new(account.to_string(), "x".to_owned(), 1, body);
            let token = encode(&mut claims, &self.operator).unwrap();
            self.gate.take_record(account, token.as_bytes(), &self.signers)
        }
    }

    fn account() -> AccountKey {
        SigningKey::generate(KeyKind::Account).public().parse().unwrap()
    }

    fn body(tenant: &str, epoch: u64, authority: u8) -> GateBody {
        let authorities = BTreeSet::from([format!("{authority:02x}").repeat(32)]);
        GateBody { tenant: tenant.to_owned(), epoch, is_open: true, authorities, ..GateBody::default() }
    }

    #[test]
    fn an_epoch_never_goes_back_not_even_after_a_removal() {
        let mut place = Place::new();
        let one = account();
        place.take(&one, body("acme-corp", 5, 1)).unwrap();
        place.take(&one, body("acme-corp", 5, 1)).unwrap();
        let earlier = place.take(&one, GateBody { is_open: false, ..body("acme-corp", 4, 1) });
        assert!(matches!(earlier, Err(NotTaken::Earlier { known: 5, found: 4 })), "{earlier:?}");
        assert!(place.gate.member(&one).unwrap().record.is_open);
        let other = place.take(&one, GateBody { is_open: false, ..body("acme-corp", 5, 1) });
        assert!(matches!(other, Err(NotTaken::SameEpoch(5))), "{other:?}");
        place.gate.drop_record(&one);
        assert!(matches!(place.take(&one, body("acme-corp", 5, 1)), Err(NotTaken::Earlier { .. })));
        assert!(place.gate.of_authority(&"01".repeat(32)).is_empty() && place.gate.is_empty());
        assert!(matches!(place.take(&one, body("acme-corp", 4, 1)), Err(NotTaken::Earlier { .. })));
        place.take(&one, body("acme-corp", 6, 2)).unwrap();
        assert_eq!(place.gate.of_authority(&"02".repeat(32)).len(), 1);
    }

    #[test]
    fn what_a_dropped_signing_key_has_signed_is_forgotten_with_its_epoch() {
        let mut place = Place::new();
        let one = account();
        place.take(&one, body("acme-corp", u64::MAX, 1)).unwrap();
        let next = SigningKey::generate(KeyKind::Operator);
        place.signers = BTreeSet::from([next.public().to_owned()]);
        place.gate.drop_foreign(&place.signers);
        assert!(place.gate.is_empty());
        place.operator = next;
        place.take(&one, body("acme-corp", 7, 1)).unwrap();
    }

    #[test]
    fn an_authority_vouches_for_one_owner() {
        let mut place = Place::new();
        let (one, two, core, ops) = (account(), account(), account(), account());
        place.take(&one, body("acme-corp", 1, 1)).unwrap();
        assert!(matches!(place.take(&two, body("xyz-inc", 1, 1)), Err(NotTaken::SharedAuthority(_))));
        assert!(matches!(place.take(&core, body("", 1, 1)), Err(NotTaken::SharedAuthority(_))));
        place.take(&core, body("", 1, 9)).unwrap();
        place.take(&ops, body("", 1, 9)).unwrap();
        assert_eq!(place.gate.of_authority(&"09".repeat(32)).len(), 2);
        assert!(matches!(place.take(&two, body("xyz-inc", 1, 9)), Err(NotTaken::SharedAuthority(_))));
        // A rotated authority: both vouch, until the old one is taken out.
        let both = BTreeSet::from(["01".repeat(32), "03".repeat(32)]);
        place.take(&one, GateBody { authorities: both, ..body("acme-corp", 2, 1) }).unwrap();
        assert_eq!(place.gate.of_authority(&"03".repeat(32)).len(), 1);
        place.take(&one, body("acme-corp", 3, 3)).unwrap();
        assert!(place.gate.of_authority(&"01".repeat(32)).is_empty());
    }

    #[test]
    fn a_record_lies_where_its_account_is_kept_and_is_the_operators() {
        let mut place = Place::new();
        let (one, two) = (account(), account());
        let mut claims = Claims::new(one.to_string(), String::new(), 1, body("acme-corp", 1, 1));
        let token = encode(&mut claims, &place.operator).unwrap();
        let misplaced = place.gate.take_record(&two, token.as_bytes(), &place.signers);
        assert!(matches!(misplaced, Err(NotTaken::Misplaced { .. })));
        place.operator = SigningKey::generate(KeyKind::Operator);
        assert!(matches!(place.take(&one, body("acme-corp", 1, 1)), Err(NotTaken::Record(GateError::Issuer(_)))));
        for garbage in [&b""[..], b"\xff\xfe", b"a.b.c", &[b'a'; 2_000_000]] {
            assert!(place.gate.take_record(&one, garbage, &place.signers).is_err());
        }
        assert!(place.gate.is_empty());
    }

    #[test]
    fn only_the_key_that_the_record_names_signs() {
        let mut place = Place::new();
        let (one, key, swapped) =
            (account(), SigningKey::generate(KeyKind::Account), SigningKey::generate(KeyKind::Account));
        let sender = SealingKey::generate();
        let seal = |key: &SigningKey, to: &SealingKey| {
            let seeds = BTreeMap::from([("leaf".to_owned(), key.seed().unwrap())]);
            seal_keys(&seeds, &sender, to.public()).unwrap()
        };
        // Keys first, as provisioning sends them.
        place.gate.take_keys(&one, &seal(&key, &place.own), &place.own).unwrap();
        let keys = BTreeMap::from([("leaf".to_owned(), key.public().to_owned())]);
        place.take(&one, GateBody { keys, ..body("acme-corp", 1, 1) }).unwrap();
        assert_eq!(place.gate.member(&one).unwrap().signer(Role::Leaf).unwrap().public(), key.public());
        assert!(place.gate.member(&one).unwrap().signer(Role::Admin).is_none());
        let foreign = seal(&key, &SealingKey::generate());
        assert!(matches!(place.gate.take_keys(&one, &foreign, &place.own), Err(NotTaken::Keys(KeysError::Sealed(_)))));
        assert!(place.gate.member(&one).unwrap().signer(Role::Leaf).is_some(), "what was there stays");
        place.gate.take_keys(&one, &seal(&swapped, &place.own), &place.own).unwrap();
        let signer = |gate: &Gate| gate.member(&one).unwrap().signer(Role::Leaf).map(|key| key.public().to_owned());
        assert_eq!(signer(&place.gate).as_deref(), Some(key.public()), "never by a key that no operator has named");
        let keys = BTreeMap::from([("leaf".to_owned(), swapped.public().to_owned())]);
        place.take(&one, GateBody { keys, ..body("acme-corp", 2, 1) }).unwrap();
        assert_eq!(signer(&place.gate).as_deref(), Some(swapped.public()), "rotated, without a gap");
        place.gate.take_keys(&one, &seal(&swapped, &place.own), &place.own).unwrap();
        place.take(&one, GateBody { keys: BTreeMap::new(), ..body("acme-corp", 3, 1) }).unwrap();
        assert_eq!(signer(&place.gate), None);
        let keys = BTreeMap::from([("leaf".to_owned(), key.public().to_owned())]);
        place.take(&one, GateBody { keys, ..body("acme-corp", 4, 1) }).unwrap();
        assert_eq!(signer(&place.gate), None, "a key that was replaced is forgotten");
        for garbage in [&b""[..], b"{}", b"{\"sender\":\"X\",\"sealed\":\"AA==\"}"] {
            assert!(place.gate.take_keys(&one, garbage, &place.own).is_err());
        }
    }
}
