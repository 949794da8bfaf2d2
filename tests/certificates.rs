//! Whom real servers let in while authorities are replaced: nats-server (Go) and rustls, with real handshakes.

#[path = "certificates/doors.rs"]
mod doors;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use bulkhead_accounts::certificates::{
    Authority, AuthorityName, CertificateFiles, ClientIdentity, Objections, Reason, Revocable, RotationStep,
    TrustDomain, read_identity,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

use doors::{NatsDoor, Verdict, meet_rustls, wait_for_routes};

const ACME: &str = "tenant/acme-corp";

struct Place {
    authority: Authority,
    now: OffsetDateTime,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new(folder.path().join("pki"), TrustDomain::default());
        let now = OffsetDateTime::now_utc();
        authority.ensure_roots(now)?;
        authority.ensure_tenant(&"acme-corp".parse()?, now)?;
        authority.ensure_tenant(&"xyz-inc".parse()?, now)?;
        authority.issue_hub("hub-1", &[], &CertificateFiles::named(folder.path(), "hub"), now)?;
        Ok(Self { authority, now, folder })
    }

    fn files(&self, name: &str) -> CertificateFiles {
        CertificateFiles::named(self.folder.path(), name)
    }

    fn poller(&self, tenant: &str, file: &str) -> anyhow::Result<CertificateFiles> {
        let files = self.files(file);
        let (tenant, site) = (tenant.parse()?, "oslo".parse()?);
        let identity = ClientIdentity::Poller { tenant, site, poller: "p1".parse()? };
        self.authority.issue_client(&identity, &files, self.now)?;
        Ok(files)
    }

    fn rotate(&self, name: &str, step: RotationStep) -> anyhow::Result<()> {
        self.authority.rotate(&name.parse()?, (step, Objections::Override), self.now)?;
        Ok(())
    }

    /// The file of whom a name's users trust, as it is now, under a name of its own.
    fn keep(&self, trust: PathBuf, name: &str) -> anyhow::Result<PathBuf> {
        let kept = self.folder.path().join(name);
        std::fs::copy(trust, &kept)?;
        Ok(kept)
    }
}

/// One server of each kind that lets in whoever `trust` vouches for.
struct Doors<'a> {
    place: &'a Place,
    trust: PathBuf,
    nats: NatsDoor,
}

impl<'a> Doors<'a> {
    async fn open(place: &'a Place, trust: PathBuf) -> anyhow::Result<Self> {
        let nats = NatsDoor::start(place.folder.path(), &place.files("hub"), &trust).await?;
        Ok(Self { place, trust, nats })
    }

    async fn check(&self, said: &str, files: &CertificateFiles, expected: Verdict) -> anyhow::Result<()> {
        let server_root = self.place.authority.server_root_file();
        let nats = self.nats.meet(files, &server_root).await?;
        ensure!(nats == expected, "{said}: nats-server said {nats:?}");
        let hub = self.place.files("hub");
        let rustls = meet_rustls(&hub, (&self.trust, None), files, &server_root).await?;
        ensure!(rustls == expected, "{said}: rustls said {rustls:?}");
        Ok(())
    }
}

/// Replaces `name`, whose users trust `trust`, and looks at each step who is let in.
async fn check_replaced(name: &str, trust: fn(&Authority) -> PathBuf) -> anyhow::Result<()> {
    let (place, elsewhere) = (Place::new()?, Place::new()?);
    let old = place.poller("acme-corp", "old")?;
    let stranger = elsewhere.poller("acme-corp", "stranger")?;
    let not_reloaded = place.keep(trust(&place.authority), "not-reloaded.crt")?;
    let doors = Doors::open(&place, trust(&place.authority)).await?;
    let late_door = Doors::open(&place, not_reloaded).await?;
    doors.check("old, before", &old, Verdict::LetIn).await?;
    doors.check("stranger, before", &stranger, Verdict::Refused).await?;

    place.rotate(name, RotationStep::Prepare)?;
    doors.nats.reload().await?;
    let new = place.poller("acme-corp", "new")?;
    doors.check("old, overlap", &old, Verdict::LetIn).await?;
    doors.check("new, overlap", &new, Verdict::LetIn).await?;
    doors.check("stranger, overlap", &stranger, Verdict::Refused).await?;
    // A root's intermediates are vouched for by both, so servers may be reloaded at leisure.
    let is_root = name.parse::<AuthorityName>()?.is_root();
    let expected = if is_root { Verdict::LetIn } else { Verdict::Refused };
    late_door.check("new, where nothing was reloaded", &new, expected).await?;

    place.rotate(name, RotationStep::Finish)?;
    doors.nats.reload().await?;
    doors.check("old, after", &old, Verdict::Refused).await?;
    doors.check("new, after", &new, Verdict::LetIn).await?;
    doors.check("issued after", &place.poller("acme-corp", "after")?, Verdict::LetIn).await?;
    doors.check("stranger, after", &stranger, Verdict::Refused).await
}

#[tokio::test]
async fn clients_pass_from_one_client_root_to_the_next() -> anyhow::Result<()> {
    check_replaced("client-root", Authority::client_root_file).await
}

#[tokio::test]
async fn clients_pass_from_one_intermediate_to_the_next() -> anyhow::Result<()> {
    let trust = |authority: &Authority| authority.tenant_intermediate_file(&"acme-corp".parse().unwrap());
    check_replaced(ACME, trust).await
}

#[tokio::test]
async fn a_rotation_that_is_abandoned_leaves_the_old_ones_in() -> anyhow::Result<()> {
    let place = Place::new()?;
    let old = place.poller("acme-corp", "old")?;
    let trust = place.authority.tenant_intermediate_file(&"acme-corp".parse()?);
    let doors = Doors::open(&place, trust).await?;
    place.rotate(ACME, RotationStep::Prepare)?;
    let new = place.poller("acme-corp", "new")?;
    doors.nats.reload().await?;
    doors.check("new, overlap", &new, Verdict::LetIn).await?;
    place.rotate(ACME, RotationStep::Abandon)?;
    doors.nats.reload().await?;
    doors.check("old, abandoned", &old, Verdict::LetIn).await?;
    doors.check("new, abandoned", &new, Verdict::Refused).await
}

/// The hub is asked by clients that know only the old server root, both, and only the new one.
#[tokio::test]
async fn clients_go_on_believing_a_hub_whose_root_is_replaced() -> anyhow::Result<()> {
    let (place, elsewhere) = (Place::new()?, Place::new()?);
    let poller = place.poller("acme-corp", "p1")?;
    let root = place.authority.server_root_file();
    let knows_old = place.keep(root.clone(), "knows-old.crt")?;
    let foreign = elsewhere.authority.server_root_file();
    let trust = place.authority.client_root_file();
    let meet = async |hub: &CertificateFiles, root: &PathBuf| {
        let door = NatsDoor::start(place.folder.path(), hub, &trust).await?;
        let nats = door.meet(&poller, root).await?;
        let rustls = meet_rustls(hub, (&trust, None), &poller, root).await?;
        ensure!(nats == rustls, "nats-server: {nats:?}, rustls: {rustls:?}");
        anyhow::Ok(nats)
    };
    let old_hub = place.files("hub");
    place.rotate("server-root", RotationStep::Prepare)?;
    let new_hub = place.files("new-hub");
    place.authority.issue_hub("hub-1", &[], &new_hub, place.now)?;
    for hub in [&old_hub, &new_hub] {
        for root in [&knows_old, &root] {
            assert_eq!(meet(hub, root).await?, Verdict::LetIn, "{hub:?} {root:?}");
        }
        assert_eq!(meet(hub, &foreign).await?, Verdict::Disbelieved, "{hub:?}");
    }
    place.rotate("server-root", RotationStep::Finish)?;
    assert_eq!(meet(&old_hub, &root).await?, Verdict::Disbelieved);
    assert_eq!(meet(&new_hub, &root).await?, Verdict::LetIn);
    Ok(())
}

/// Go verifies Go: a hub server that was not reloaded and one with a new certificate make a cluster.
#[tokio::test]
async fn hub_servers_stay_linked_while_the_route_root_is_replaced() -> anyhow::Result<()> {
    let (place, elsewhere) = (Place::new()?, Place::new()?);
    let root = place.authority.route_root_file();
    let (old, new, foreign) = (place.files("route-old"), place.files("route-new"), place.files("route-foreign"));
    place.authority.issue_route("hub-1", &[], &old, place.now)?;
    elsewhere.authority.issue_route("hub-2", &[], &foreign, place.now)?;
    let first = NatsDoor::start_in_cluster(place.folder.path(), &old, &root, None).await?;
    place.rotate("route-root", RotationStep::Prepare)?;
    place.authority.issue_route("hub-2", &[], &new, place.now)?;
    let second = NatsDoor::start_in_cluster(place.folder.path(), &new, &root, Some(&first)).await?;
    wait_for_routes(&second, &first).await?;
    let _stranger = NatsDoor::start_in_cluster(place.folder.path(), &foreign, &root, Some(&second)).await?;
    second.wait_for_log("TLS route handshake error").await?;
    place.rotate("route-root", RotationStep::Finish)?;
    let third = NatsDoor::start_in_cluster(place.folder.path(), &new, &root, None).await?;
    let _late = NatsDoor::start_in_cluster(place.folder.path(), &old, &root, Some(&third)).await?;
    third.wait_for_log("TLS route handshake error").await?;
    let fourth = NatsDoor::start_in_cluster(place.folder.path(), &new, &root, Some(&third)).await?;
    wait_for_routes(&fourth, &third).await
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_where_lists_are_read() -> anyhow::Result<()> {
    let place = Place::new()?;
    let (p1, p2) = (place.poller("acme-corp", "p1")?, place.poller("acme-corp", "p2")?);
    let (hub, root) = (place.files("hub"), place.authority.server_root_file());
    let trust = place.authority.client_root_file();
    let acme: AuthorityName = ACME.parse()?;
    place.authority.renew_lists(place.now)?;
    let lists = [place.authority.list_file(&acme), place.authority.list_file(&AuthorityName::ClientRoot)];
    let meet = async |files: &CertificateFiles| meet_rustls(&hub, (&trust, Some(&lists[..])), files, &root).await;
    assert_eq!(meet(&p1).await?, Verdict::LetIn, "control");
    let serial = place.authority.list_issued(&acme)?.first().context("nothing was issued")?.serial.clone();
    place.authority.revoke(&Revocable::Serial(serial), Reason::KeyCompromise, place.now)?;
    assert_eq!(meet(&p1).await?, Verdict::Refused);
    assert_eq!(meet(&p2).await?, Verdict::LetIn);
    place.authority.forget_tenant(&"acme-corp".parse()?, place.now)?;
    let lists = [place.authority.list_file(&AuthorityName::ClientRoot)];
    let after = meet_rustls(&hub, (&trust, Some(&lists)), &p2, &root).await?;
    assert_eq!(after, Verdict::Refused, "the tenant is gone");
    Ok(())
}

/// What somebody can make who holds the key of xyz-inc's intermediate.
#[tokio::test]
async fn a_tenants_intermediate_makes_nothing_for_another_tenant() -> anyhow::Result<()> {
    let place = Place::new()?;
    let (xyz, acme) = ("xyz-inc.serviceradar", "acme-corp.serviceradar");
    let doors = Doors::open(&place, place.authority.client_root_file()).await?;
    let own_uri = "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/p1";
    let acme_uri = "spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1";
    let identity = |files: &CertificateFiles| {
        let end = CertificateDer::from_pem_file(&files.cert_file)?;
        anyhow::Ok(read_identity(&end, &TrustDomain::default()))
    };
    let (own, foreign) = (format!("p1.oslo.{xyz}"), format!("p1.oslo.{acme}"));
    let honest = doors::forge(&place.folder, "honest", &own, &[&own], own_uri)?;
    doors.check("control", &honest, Verdict::LetIn).await?;
    assert!(identity(&honest)?.is_ok());
    for (name, names) in [
        ("foreign", vec![foreign.as_str()]),
        ("both", vec![own.as_str(), &foreign]),
        ("wild", vec!["*.serviceradar"]),
        ("above", vec!["serviceradar"]),
        ("alike", vec!["p1.oslo.not-xyz-inc.serviceradar"]),
    ] {
        let forged = doors::forge(&place.folder, name, names[0], &names, acme_uri)?;
        doors.check(name, &forged, Verdict::Refused).await?;
    }
    // TLS does not look at these: whoever admits clients does, by reading the identity.
    for (name, common_name, names) in [
        ("uri", own.as_str(), vec![own.as_str()]),
        ("common-name", &foreign, vec![&own]),
        ("nameless", &foreign, vec![]),
    ] {
        let forged = doors::forge(&place.folder, name, common_name, &names, acme_uri)?;
        doors.check(name, &forged, Verdict::LetIn).await?;
        assert!(identity(&forged)?.is_err(), "{name}");
    }
    Ok(())
}
