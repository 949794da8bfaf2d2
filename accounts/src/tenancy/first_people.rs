//! The people that `bulkhead up` lets in by itself: known like all others, so that they can be listed and put out.

use bulkhead_bus::{TenantSlug, UserName};

use super::people::{PlatformPerson, read_platform_people, write_platform_people};
use super::{Issued, PersonRecord, PersonRole, Standing, TenancyError, TenantRecords};
use crate::up::Layout;

/// Somebody who was issued a certificate.
#[derive(Debug, Clone)]
pub struct LetIn {
    /// `None` for a person of the platform.
    pub tenant: Option<TenantSlug>,
    pub name: UserName,
    pub issued: Issued,
}

/// Replaces what is known to be good by what was issued now; what is still good of it stays known, until it ends.
pub(super) fn renew(now_s: i64, current: &mut Issued, earlier: &mut Vec<Issued>, issued: Issued) {
    earlier.push(std::mem::replace(current, issued));
    earlier.retain(|one| one.certificates_expire > now_s);
}

/// Writes down who was let in. Whoever was put out before is in again, with what is new alone.
///
/// # Errors
/// When a record is damaged or cannot be written.
pub fn remember_people(layout: &Layout, people: &[LetIn], now_s: i64) -> Result<(), TenancyError> {
    let records = TenantRecords::new(layout);
    for LetIn { tenant, name, issued } in people {
        let issued = issued.clone();
        if let Some(slug) = tenant {
            let mut record = records.get(slug).map_err(TenancyError::Record)?;
            match record.people.get_mut(name) {
                Some(known) => {
                    known.standing = Standing::Active;
                    renew(now_s, &mut known.issued, &mut known.earlier, issued);
                }
                None => {
                    let person =
                        PersonRecord { role: PersonRole::Admin, standing: Standing::Active, issued, earlier: vec![] };
                    record.people.insert(name.clone(), person);
                }
            }
            records.write(&record).map_err(TenancyError::Record)?;
        } else {
            let mut all = read_platform_people(layout)?;
            match all.people.get_mut(name) {
                Some(known) => {
                    known.standing = Standing::Active;
                    renew(now_s, &mut known.issued, &mut known.earlier, issued);
                }
                None => {
                    let person = PlatformPerson { standing: Standing::Active, issued, earlier: vec![] };
                    all.people.insert(name.clone(), person);
                }
            }
            write_platform_people(layout, &all)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, PlanName};
    use crate::tenancy::TenantRecord;

    fn issued(serial: &str, certificates_expire: i64) -> Issued {
        Issued { serials: vec![serial.to_owned()], certificates_expire }
    }

    #[test]
    fn what_is_still_good_stays_known() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        let slug: TenantSlug = "acme-corp".parse().unwrap();
        let plan = Plan::of(PlanName::Free).plan_ref();
        let records = TenantRecords::new(&layout);
        records.write(&TenantRecord::new(slug.clone(), uuid::Uuid::nil(), plan, 0)).unwrap();
        let name: UserName = "admin".parse().unwrap();
        for (now, key, expires) in [(0, "U1", 30), (10, "U2", 40), (35, "U3", 65)] {
            let let_in = |tenant| LetIn { tenant, name: name.clone(), issued: issued(key, expires) };
            remember_people(&layout, &[let_in(None), let_in(Some(slug.clone()))], now).unwrap();
        }
        let person = records.get(&slug).unwrap().people.remove(&name).unwrap();
        assert_eq!((person.issued, person.earlier), (issued("U3", 65), vec![issued("U2", 40)]));
        let person = read_platform_people(&layout).unwrap().people.remove(&name).unwrap();
        assert_eq!((person.issued, person.earlier), (issued("U3", 65), vec![issued("U2", 40)]));
    }
}
