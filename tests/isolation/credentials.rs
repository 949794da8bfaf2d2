//! What does not belong together is refused at the door, each refusal beside the nearest thing that is admitted.

use std::path::PathBuf;

use anyhow::Context;
use bulkhead_accounts::certificates::{Authority, CertificateFiles, ClientIdentity, TrustDomain};
use bulkhead_accounts::operator::UserRequest;
use bulkhead_bus::Role;
use bulkhead_claims::{Claims, UserBody, credentials_text, encode};
use bulkhead_claims::{KeyKind, SigningKey};
use bulkhead_runtime::now_ms;
use bulkhead_testkit::{ConnectError, Identity, RawClient, RawLeaf, TestDeployment};

use crate::watch::{ACME, TENANTS, XYZ, unique};

/// By which door somebody comes.
#[derive(Debug, Clone, Copy)]
enum Door {
    Client,
    Leaf,
}

const VIOLATION: &str = "Refused(\"Authorization Violation\")";
const TLS: &str = "RefusedTls(\"";

async fn knock(deployment: &TestDeployment, door: Door, identity: &Identity) -> Result<(), ConnectError> {
    match door {
        Door::Client => RawClient::connect(&deployment.hub(), identity).await.map(drop),
        Door::Leaf => {
            let name = unique(&format!("leaf-{ACME}-oslo.raw-"));
            RawLeaf::connect(&deployment.hub_for_leaves(), identity, &name).await.map(drop)
        }
    }
}

async fn expect_admitted(deployment: &TestDeployment, door: Door, identity: &Identity, who: &str) {
    let outcome = knock(deployment, door, identity).await;
    assert!(outcome.is_ok(), "{who} at {door:?}: {outcome:?}");
}

async fn expect_refused(deployment: &TestDeployment, door: Door, identity: &Identity, who: &str, how: &str) {
    let outcome = format!("{:?}", knock(deployment, door, identity).await);
    assert!(outcome.contains(how), "{who} at {door:?}: {outcome} is not {how}");
}

/// Certificates of a platform that looks the same in every name and is another one.
fn stranger_certificate(deployment: &TestDeployment, identity: &ClientIdentity) -> anyhow::Result<CertificateFiles> {
    let folder = deployment.home().join(unique("stranger-"));
    let authority = Authority::new(folder.join("pki"), TrustDomain::default());
    let now = deployment.up.platform.now;
    authority.ensure_roots(now)?;
    authority.ensure_tenant(&ACME.parse()?, now)?;
    let files = CertificateFiles::named(&folder, "stranger");
    authority.issue_client(identity, &files, now)?;
    Ok(files)
}

async fn check_certificates(deployment: &TestDeployment) -> anyhow::Result<()> {
    let person = deployment.person_identity("acme-corp-admin")?;
    let leaf = deployment.leaf_identity(ACME, "oslo")?;
    let (tenant, site) = (ACME.parse()?, "oslo".parse()?);
    let as_person = ClientIdentity::User { tenant, user: "admin".parse()? };
    let as_leaf = ClientIdentity::Leaf { tenant: ACME.parse()?, site };
    for (door, identity, named) in [(Door::Client, person, as_person), (Door::Leaf, leaf, as_leaf)] {
        expect_admitted(deployment, door, &identity, "itself").await;
        let bare = Identity { certificate: None, ..identity.clone() };
        expect_refused(deployment, door, &bare, "nobody's certificate", TLS).await;
        let files = stranger_certificate(deployment, &named)?;
        let stranger = identity.clone().with_certificate(files.cert_file, files.key_file);
        expect_refused(deployment, door, &stranger, "another root's certificate", TLS).await;
        let hub = CertificateFiles::named(&deployment.up.layout.hub(), "hub");
        let server = identity.clone().with_certificate(hub.cert_file, hub.key_file);
        expect_refused(deployment, door, &server, "the hub's own certificate", TLS).await;
    }
    Ok(())
}

async fn check_kinds(deployment: &TestDeployment) -> anyhow::Result<()> {
    let person = deployment.person_identity("acme-corp-admin")?;
    let leaf = deployment.leaf_identity(ACME, "oslo")?;
    expect_refused(deployment, Door::Client, &leaf, "a leaf", VIOLATION).await;
    expect_refused(deployment, Door::Leaf, &person, "a person", VIOLATION).await;
    for (door, identity) in [(Door::Client, &person), (Door::Leaf, &leaf)] {
        expect_admitted(deployment, door, identity, "itself, by its certificate alone").await;
        // What it says of itself changes nothing, or does harm to itself only.
        let named = identity.clone().with_field("user", "core").with_field("pass", "core");
        expect_admitted(deployment, door, &named, "with a name and a password").await;
        let garbage = identity.clone().with_field("jwt", "a.b.c").with_field("sig", "AAAA");
        expect_admitted(deployment, door, &garbage, "with a token that is none").await;
    }
    Ok(())
}

fn write_creds(deployment: &TestDeployment, text: &str) -> anyhow::Result<PathBuf> {
    let path = deployment.home().join(unique("made-")).with_extension("creds");
    std::fs::write(&path, text).context("write credentials")?;
    Ok(path)
}

/// Credentials for `body` under any key.
fn signed_creds(deployment: &TestDeployment, body: UserBody, signer: &SigningKey) -> anyhow::Result<PathBuf> {
    let user = SigningKey::generate(KeyKind::User);
    let mut claims = Claims::new(user.public().to_owned(), "admin".to_owned(), now_ms() / 1_000, body);
    claims.exp = Some(now_ms() / 1_000 + 3_600);
    let token = encode(&mut claims, signer).context("sign a user")?;
    write_creds(deployment, &credentials_text(&token, &user)?)
}

fn role_signer(deployment: &TestDeployment, account: &str, role: Role) -> anyhow::Result<SigningKey> {
    let record = deployment.account(account)?;
    let public = record.role_key(role).context("the account has such a role")?;
    Ok(deployment.up.platform.operator.keys().read(public, KeyKind::Account)?)
}

/// Nobody is let in by a token, whoever has signed it: also not beside the certificate of the person whom it names.
async fn check_signers(deployment: &TestDeployment) -> anyhow::Result<()> {
    let person = deployment.person_identity("acme-corp-admin")?;
    let (acme, xyz) = (deployment.key_of(ACME)?, deployment.key_of(XYZ)?);
    let plain = |issuer: &str| UserBody::scoped(issuer.to_owned(), vec![]);
    let greedy = || {
        let mut body = plain(&acme);
        body.publish.allow = vec![">".to_owned()];
        body.subscribe.allow = vec![">".to_owned()];
        body
    };
    let role = role_signer(deployment, ACME, Role::Admin)?;
    let own = deployment.up.platform.operator.keys().read(&acme, KeyKind::Account)?;
    let foreign = role_signer(deployment, XYZ, Role::Admin)?;
    let unknown = SigningKey::generate(KeyKind::Account);
    for (who, body, signer) in [
        ("a user of the role", plain(&acme), &role),
        ("a user of the account's identity key", plain(""), &own),
        ("a user of the account's identity key that names it", plain(&acme), &own),
        ("a user with rights of its own from the identity key", greedy(), &own),
        ("a user with rights beside the role's", greedy(), &role),
        ("a user that another tenant's key puts into this account", plain(&acme), &foreign),
        ("a user that this tenant's key puts into another account", plain(&xyz), &role),
        ("a user of a key that nobody knows", plain(&acme), &unknown),
    ] {
        let creds = signed_creds(deployment, body, signer)?;
        expect_refused(deployment, Door::Client, &person.clone().with_creds(creds), who, VIOLATION).await;
    }
    Ok(())
}

async fn check_expiry(deployment: &TestDeployment) -> anyhow::Result<()> {
    let site = "oslo".parse()?;
    let now = now_ms() / 1_000;
    let person = (Door::Client, Role::Admin, "admin", None, deployment.person_identity("acme-corp-admin")?);
    let leaf = (Door::Leaf, Role::Leaf, "leaf", Some(&site), deployment.leaf_identity(ACME, "oslo")?);
    for (door, role, name, site, identity) in [person, leaf] {
        let issue = |expires| {
            let user = UserRequest { account: ACME, role, name, site, expires };
            let text = deployment.up.platform.operator.issue_user(&user, now - 7_200)?.text;
            anyhow::Ok(identity.clone().with_creds(write_creds(deployment, &text)?))
        };
        expect_refused(deployment, door, &issue(now + 3_600)?, "valid for an hour", VIOLATION).await;
        let outcome = format!("{:?}", knock(deployment, door, &issue(now - 60)?).await);
        assert!(outcome.contains("Expired") || outcome.contains(VIOLATION), "expired at {door:?}: {outcome}");
    }
    Ok(())
}

#[tokio::test]
async fn what_does_not_belong_together_is_refused_at_the_door() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&TENANTS, &[]).await?;
    check_certificates(&deployment).await?;
    check_kinds(&deployment).await?;
    check_signers(&deployment).await?;
    check_expiry(&deployment).await?;
    deployment.stop().await
}
