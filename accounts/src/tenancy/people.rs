//! People of a tenant and of the platform: a certificate, credentials, and a profile that names them. Revocation voids all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_bus::{Role, TenantSlug, UserName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use x509_parser::pem::parse_x509_pem;

use super::{Act, Issued, Links, PersonRecord, PersonRole, Preview, Standing, Tenancy, TenancyError, TenantStage};
use crate::certificates::{AuthorityName, CertificateFiles, ClientIdentity, read_identity};
use crate::files::{read_state, write_secret};
use crate::operator::UserRequest;
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
    /// The folder that gets the profile, the certificate and the credentials.
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
        let about = format!("{slug}/{}", person.name);
        let identity = ClientIdentity::User { tenant: slug.clone(), user: person.name.clone() };
        self.check_folder(&identity, person)?;
        let act = self.begin(Act::AddPerson, &about, json!({"role": role.as_str()}))?;
        let (path, issued) = self.issue_person(slug.as_str(), role.role(), &identity, person)?;
        let known = record.people.insert(
            person.name.clone(),
            PersonRecord { role, standing: Standing::Active, issued: issued.clone(), earlier: vec![] },
        );
        self.records.write(&record).map_err(TenancyError::Record)?;
        if let Some(known) = known.filter(|known| known.standing == Standing::Active) {
            self.void_all(links, &AuthorityName::Tenant(slug.clone()), &known.issued, &known.earlier).await?;
        }
        act.finish(json!({"user": issued.user_key}), self.now_s()).map_err(TenancyError::Journal)?;
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
        self.void_all(links, &AuthorityName::Tenant(slug.clone()), &issued, &earlier).await?;
        act.finish(json!({"user": issued.user_key}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// Lets a person of the platform in; returns the profile's path.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn add_platform_person(&self, links: &Links, person: &NewPerson) -> Result<PathBuf, TenancyError> {
        let identity = ClientIdentity::PlatformUser { user: person.name.clone() };
        self.check_folder(&identity, person)?;
        let act = self.begin(Act::AddPerson, &format!("{OPS}/{}", person.name), json!({}))?;
        let (path, issued) = self.issue_person(OPS, Role::PlatformAdmin, &identity, person)?;
        let mut people = self.platform_people()?;
        let entry = PlatformPerson { standing: Standing::Active, issued: issued.clone(), earlier: vec![] };
        let known = people.people.insert(person.name.clone(), entry);
        write_platform_people(&self.platform.layout, &people)?;
        if let Some(known) = known.filter(|known| known.standing == Standing::Active) {
            self.void_all(links, &AuthorityName::Platform, &known.issued, &known.earlier).await?;
        }
        act.finish(json!({"user": issued.user_key}), self.now_s()).map_err(TenancyError::Journal)?;
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
        self.void_all(links, &AuthorityName::Platform, &issued, &earlier).await?;
        act.finish(json!({"user": issued.user_key}), self.now_s()).map_err(TenancyError::Journal)
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
        let person = one_of(&mut record.people, name, &format!("tenant {slug}"))?;
        let issued: Vec<&Issued> = [&person.issued].into_iter().chain(&person.earlier).collect();
        self.preview_void(links, slug.as_str(), &issued).await
    }

    /// What putting a person of the platform out would do.
    ///
    /// # Errors
    /// When there is no such person, or the servers cannot be asked.
    pub async fn preview_platform_person(&self, links: &Links, name: &UserName) -> Result<Preview, TenancyError> {
        let mut people = self.platform_people()?;
        let person = one_of(&mut people.people, name, "the platform")?;
        let issued: Vec<&Issued> = [&person.issued].into_iter().chain(&person.earlier).collect();
        self.preview_void(links, OPS, &issued).await
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

    fn issue_person(
        &self,
        account: &str,
        role: Role,
        identity: &ClientIdentity,
        person: &NewPerson,
    ) -> Result<(PathBuf, Issued), TenancyError> {
        let folder = std::path::absolute(&person.folder)
            .map_err(|error| TenancyError::Invalid(format!("folder {}: {error}", person.folder.display())))?;
        let expires = self.now_s() + i64::from(person.days) * 86_400;
        let user = UserRequest { account, role, name: person.name.as_str(), site: None, expires };
        let (settings, issued) =
            self.platform.issue_recorded(&user, identity, &folder).map_err(TenancyError::Platform)?;
        let profile = Profile {
            user: person.name.clone(),
            urls: settings.urls,
            ca_file: copy_root(&settings.tls.ca_file, &folder)?,
            cert_file: settings.tls.cert_file,
            key_file: settings.tls.key_file,
            creds_file: settings.creds_file.unwrap_or_default(),
        };
        let path = folder.join("profile.toml");
        profile.write(&path).map_err(|error| TenancyError::Invalid(bulkhead_runtime::Chain(&error).to_string()))?;
        Ok((path, issued))
    }

    /// Voids what is in use and what is good still of earlier times.
    pub(super) async fn void_all(
        &self,
        links: &Links,
        issuer: &AuthorityName,
        issued: &Issued,
        earlier: &[Issued],
    ) -> Result<(), TenancyError> {
        for issued in std::iter::once(issued).chain(earlier) {
            self.void(links, issuer, issued).await?;
        }
        Ok(())
    }

    /// Voids what somebody was issued: on the servers by the user's key, and for what looks at certificates by their serials.
    /// Who has issued them is a tenant's intermediate, or the platform's for people in OPS.
    async fn void(&self, links: &Links, issuer: &AuthorityName, issued: &Issued) -> Result<(), TenancyError> {
        self.platform.revoke_certificates(issuer, issued).map_err(TenancyError::Platform)?;
        let account = if let AuthorityName::Tenant(slug) = issuer { slug.as_str() } else { OPS };
        if issued.user_key.is_empty() {
            return Ok(());
        }
        let operator = &self.platform.operator;
        let signed = operator.revoke_user(account, &issued.user_key, self.now_s()).map_err(TenancyError::Operator)?;
        links.push(&signed).await
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
