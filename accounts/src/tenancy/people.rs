//! People of a tenant and of the platform: a certificate, and a profile that names it. The gatekeepers let in whoever is
//! told to them here, and close whoever is put out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_bus::{TenantSlug, UserName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use x509_parser::pem::parse_x509_pem;

use super::{
    Act, Issued, Links, PersonRecord, PersonRole, Preview, Standing, Tenancy, TenancyError, TenantRecord, TenantStage,
};
use crate::certificates::{AuthorityName, CertificateFiles, ClientIdentity, read_identity};
use crate::files::{read_state, write_secret};
use crate::gate::PROBE;
use crate::profile::Profile;
use crate::up::{Layout, OPS};

/// People of the platform, as `<home>/ops.json` keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformPeople {
    pub people: BTreeMap<UserName, PlatformPerson>,
}

/// Somebody in OPS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformPerson {
    pub standing: Standing,
    pub issued: Issued,
    /// What was issued before and is good until it ends, or until the person is put out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Issued>,
}

/// Where a new person is to be put.
#[derive(Debug, Clone)]
pub struct NewPerson {
    pub name: UserName,
    /// The folder that gets the profile and the certificate.
    pub folder: PathBuf,
    pub days: u32,
}

pub(super) fn read_platform_people(layout: &Layout) -> Result<PlatformPeople, TenancyError> {
    let path = layout.ops_file();
    if !path.exists() {
        return Ok(PlatformPeople::default());
    }
    let text = read_state(&path).map_err(TenancyError::File)?;
    let damaged = |error| TenancyError::Invalid(format!("{} is damaged: {error}", path.display()));
    serde_json::from_str(&text).map_err(damaged)
}

pub(super) fn write_platform_people(layout: &Layout, people: &PlatformPeople) -> Result<(), TenancyError> {
    let text = json!(people).to_string();
    write_secret(&layout.ops_file(), text.as_bytes()).map_err(TenancyError::File)
}

impl Tenancy {
    /// Everybody in OPS.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn platform_people(&self) -> Result<PlatformPeople, TenancyError> {
        read_platform_people(&self.platform.layout)
    }

    /// Lets a person of a tenant in; returns the profile's path. Once more for the same name issues anew and voids what was
    /// issued before.
    ///
    /// # Errors
    /// When the tenant is not open, or a file cannot be written.
    pub async fn add_person(
        &self,
        links: &Links,
        slug: &TenantSlug,
        person: &NewPerson,
        role: PersonRole,
    ) -> Result<PathBuf, TenancyError> {
        let mut record = self.staged(slug, &[TenantStage::Active], "people are added to a tenant that is active")?;
        if person.name.as_str() == PROBE {
            let problem = format!("{PROBE} is what provisioning itself is called in each tenant: choose another name");
            return Err(TenancyError::Invalid(problem));
        }
        let about = format!("{slug}/{}", person.name);
        let identity = ClientIdentity::User { tenant: slug.clone(), user: person.name.clone() };
        self.check_folder(&identity, person)?;
        let act = self.begin(Act::AddPerson, &about, json!({"role": role.as_str()}))?;
        let (path, issued) = self.issue_person(&identity, person)?;
        let known = record.people.insert(
            person.name.clone(),
            PersonRecord { role, standing: Standing::Active, issued: issued.clone(), earlier: vec![] },
        );
        self.records.write(&record).map_err(TenancyError::Record)?;
        if let Some(known) = known.filter(|known| known.standing == Standing::Active) {
            self.void_all(&AuthorityName::Tenant(slug.clone()), &known.issued, &known.earlier)?;
        }
        self.follow_tenant(links, &record).await?;
        act.finish(json!({"certificates": issued.serials}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(path)
    }

    /// Puts a person of a tenant out, at once.
    ///
    /// # Errors
    /// When there is no such person, or a server does not follow: then say it again.
    pub async fn revoke_person(&self, links: &Links, slug: &TenantSlug, name: &UserName) -> Result<(), TenancyError> {
        let mut record = self.records.get(slug).map_err(TenancyError::Record)?;
        let person = one_of(&mut record.people, name, &format!("tenant {slug}"))?;
        let act = self.begin(Act::RevokePerson, &format!("{slug}/{name}"), json!({}))?;
        person.standing = Standing::Revoked;
        let (issued, earlier) = (person.issued.clone(), person.earlier.clone());
        self.records.write(&record).map_err(TenancyError::Record)?;
        self.void_all(&AuthorityName::Tenant(slug.clone()), &issued, &earlier)?;
        self.journal.forget(Act::AddPerson, &format!("{slug}/{name}")).map_err(TenancyError::Journal)?;
        self.follow_tenant(links, &record).await?;
        act.finish(json!({"certificates": issued.serials}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// Lets a person of the platform in; returns the profile's path.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn add_platform_person(&self, links: &Links, person: &NewPerson) -> Result<PathBuf, TenancyError> {
        let identity = ClientIdentity::PlatformUser { user: person.name.clone() };
        self.check_folder(&identity, person)?;
        let act = self.begin(Act::AddPerson, &format!("{OPS}/{}", person.name), json!({}))?;
        let (path, issued) = self.issue_person(&identity, person)?;
        let mut people = self.platform_people()?;
        let entry = PlatformPerson { standing: Standing::Active, issued: issued.clone(), earlier: vec![] };
        let known = people.people.insert(person.name.clone(), entry);
        write_platform_people(&self.platform.layout, &people)?;
        if let Some(known) = known.filter(|known| known.standing == Standing::Active) {
            self.void_all(&AuthorityName::Platform, &known.issued, &known.earlier)?;
        }
        self.narrow(links, OPS).await?;
        act.finish(json!({"certificates": issued.serials}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(path)
    }

    /// Puts a person of the platform out, at once.
    ///
    /// # Errors
    /// When there is no such person, or a server does not follow: then say it again.
    pub async fn revoke_platform_person(&self, links: &Links, name: &UserName) -> Result<(), TenancyError> {
        let mut people = self.platform_people()?;
        let person = one_of(&mut people.people, name, "the platform")?;
        let act = self.begin(Act::RevokePerson, &format!("{OPS}/{name}"), json!({}))?;
        person.standing = Standing::Revoked;
        let (issued, earlier) = (person.issued.clone(), person.earlier.clone());
        write_platform_people(&self.platform.layout, &people)?;
        self.void_all(&AuthorityName::Platform, &issued, &earlier)?;
        self.journal.forget(Act::AddPerson, &format!("{OPS}/{name}")).map_err(TenancyError::Journal)?;
        self.narrow(links, OPS).await?;
        act.finish(json!({"certificates": issued.serials}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// What putting a person of a tenant out would do.
    ///
    /// # Errors
    /// When there is no such person, or the servers cannot be asked.
    pub async fn preview_person(
        &self,
        links: &Links,
        slug: &TenantSlug,
        name: &UserName,
    ) -> Result<Preview, TenancyError> {
        let mut record = self.records.get(slug).map_err(TenancyError::Record)?;
        let account = self.account_named(slug.as_str())?;
        let now = self.gate_of_tenant(&record, &account)?;
        one_of(&mut record.people, name, &format!("tenant {slug}"))?.standing = Standing::Revoked;
        let wanted = self.gate_of_tenant(&record, &account)?;
        self.preview_gate(links, &account, (&now, &wanted)).await
    }

    /// What putting a person of the platform out would do.
    ///
    /// # Errors
    /// When there is no such person, or the servers cannot be asked.
    pub async fn preview_platform_person(&self, links: &Links, name: &UserName) -> Result<Preview, TenancyError> {
        let mut people = self.platform_people()?;
        one_of(&mut people.people, name, "the platform")?;
        let account = self.account_named(OPS)?;
        let now = self.gate_of(&account)?.unwrap_or_default();
        let mut wanted = now.clone();
        wanted.people.remove(name.as_str());
        self.preview_gate(links, &account, (&now, &wanted)).await
    }

    /// Refuses a folder with anything in it but what the same person was given before.
    ///
    /// # Errors
    /// When there is something else.
    pub fn check_folder(&self, identity: &ClientIdentity, person: &NewPerson) -> Result<(), TenancyError> {
        let folder = &person.folder;
        let is_free = match std::fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => return Err(TenancyError::Invalid(format!("folder {}: {error}", folder.display()))),
        };
        let certificate = CertificateFiles::named(folder, person.name.as_str()).cert_file;
        let shown = std::fs::read(certificate).ok().and_then(|text| parse_x509_pem(&text).ok().map(|(_, pem)| pem));
        let domain = self.platform.authority.trust_domain();
        let held = shown.and_then(|pem| read_identity(&pem.contents, domain).ok());
        if is_free || held.as_ref() == Some(identity) {
            return Ok(());
        }
        Err(TenancyError::Invalid(format!(
            "folder {} is not empty and holds nothing of {}: nothing in it was touched; name a new folder",
            folder.display(),
            person.name
        )))
    }

    fn issue_person(&self, identity: &ClientIdentity, person: &NewPerson) -> Result<(PathBuf, Issued), TenancyError> {
        let folder = std::path::absolute(&person.folder)
            .map_err(|error| TenancyError::Invalid(format!("folder {}: {error}", person.folder.display())))?;
        let (settings, issued) = self
            .platform
            .let_in(identity, person.name.as_str(), &folder, time::Duration::days(person.days.into()))
            .map_err(TenancyError::Platform)?;
        let profile = Profile {
            user: person.name.clone(),
            urls: settings.urls,
            ca_file: copy_root(&settings.tls.ca_file, &folder)?,
            cert_file: settings.tls.cert_file,
            key_file: settings.tls.key_file,
        };
        let path = folder.join("profile.toml");
        profile.write(&path).map_err(|error| TenancyError::Invalid(bulkhead_runtime::Chain(&error).to_string()))?;
        Ok((path, issued))
    }

    /// Revokes the certificates in use and those that are good still of earlier times. The gatekeepers hear of it when they
    /// are told of the account. Who has issued them is a tenant's intermediate, or the platform's for people in OPS.
    pub(super) fn void_all(
        &self,
        issuer: &AuthorityName,
        issued: &Issued,
        earlier: &[Issued],
    ) -> Result<(), TenancyError> {
        for issued in std::iter::once(issued).chain(earlier) {
            self.platform.revoke_certificates(issuer, issued).map_err(TenancyError::Platform)?;
        }
        Ok(())
    }

    /// Tells the gatekeepers of a tenant as it is now, and waits until nobody is in who is let in no more.
    pub(super) async fn follow_tenant(&self, links: &Links, record: &TenantRecord) -> Result<(), TenancyError> {
        let account = self.account_named(record.slug.as_str())?;
        let body = self.gate_of_tenant(record, &account)?;
        self.put_out(links, &account, &body).await
    }
}

fn one_of<'a, P>(
    people: &'a mut BTreeMap<UserName, P>,
    name: &UserName,
    whose: &str,
) -> Result<&'a mut P, TenancyError> {
    let names: Vec<&str> = people.keys().map(UserName::as_str).collect();
    let known = if names.is_empty() { "nobody yet".to_owned() } else { names.join(", ") };
    let nobody = || TenancyError::Invalid(format!("{whose} has nobody called {name}: it has {known}"));
    people.get_mut(name).ok_or_else(nobody)
}

/// So that the folder can be carried to another machine whole.
fn copy_root(root: &Path, folder: &Path) -> Result<PathBuf, TenancyError> {
    let text = read_state(root).map_err(TenancyError::File)?;
    let path = folder.join("server-root.crt");
    crate::files::write_public(&path, text.as_bytes()).map_err(TenancyError::File)?;
    Ok(path)
}
