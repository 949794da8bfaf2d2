//! From a revocation to the end of the connection of whom it is about.
//!
//! The connections live on a thread of their own, because revoking keeps the thread busy that it runs on.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_accounts::plan::{PlanChoice, PlanName};
use bulkhead_accounts::profile::Profile;
use bulkhead_accounts::tenancy::{IfThere, NewPerson, NewTenant, PersonRole};
use bulkhead_bus::{TenantSlug, UserName};
use bulkhead_testkit::{Endpoint, Identity, RawClient};
use futures_util::future::try_join_all;

use super::times::Times;
use super::town::Town;

/// How long a revocation may take before the benchmark gives up.
const LIMIT: Duration = Duration::from_secs(60);
const DAYS: u32 = 1;

/// Revocations of people who were connected.
#[derive(Debug, Clone)]
pub struct Revocations {
    /// From calling the revocation to the end of the connection.
    pub to_disconnect: Times,
    /// How long the call itself took: until every server shows it.
    pub call: Times,
}

/// Puts out `count` people of a new tenant, one after the other. Somebody who is not put out stays connected.
pub(super) async fn measure(town: &mut Town, count: usize) -> anyhow::Result<Revocations> {
    let slug = add_tenant(town).await?;
    let mut people = Vec::new();
    for number in 0..=count {
        let name: UserName = format!("person-{number}").parse()?;
        let folder = town.deployment.home().join("bench").join(slug.as_str()).join(name.as_str());
        let person = NewPerson { name: name.clone(), folder, days: DAYS };
        town.set_clock();
        let profile = town.tenancy.add_person(&town.links, &slug, &person, PersonRole::Viewer).await;
        people.push((name, identity(&Profile::read(&profile.context("add a person")?)?)));
    }
    let identities = people.iter().map(|(_, identity)| identity.clone()).collect();
    let watch = Watch::start(town.deployment.hub(), identities)?;
    let (mut to_disconnect, mut call) = (Vec::new(), Vec::new());
    for (number, (name, _)) in people.iter().take(count).enumerate() {
        town.set_clock();
        let began = Instant::now();
        town.tenancy.revoke_person(&town.links, &slug, name).await.with_context(|| format!("revoke {name}"))?;
        call.push(began.elapsed());
        let (ended, at) = watch.ends.recv_timeout(LIMIT).with_context(|| format!("{name} is still connected"))?;
        ensure!(ended == number, "revoking {name} ended the connection of person-{ended}");
        to_disconnect.push(at.duration_since(began));
    }
    ensure!(watch.ends.try_recv().is_err(), "somebody was disconnected who was not revoked");
    Ok(Revocations { to_disconnect: to_disconnect.into_iter().collect(), call: call.into_iter().collect() })
}

async fn add_tenant(town: &mut Town) -> anyhow::Result<TenantSlug> {
    let order = NewTenant {
        slug: town.next_slug()?,
        display_name: String::new(),
        plan: Some(PlanChoice::Newest(PlanName::Enterprise)),
        if_there: IfThere::Refuse,
    };
    town.set_clock();
    Ok(town.tenancy.add_tenant(&town.links, &order, &|_| ()).await.context("add a tenant")?.record.slug)
}

pub(super) fn identity(profile: &Profile) -> Identity {
    Identity::trusting(&profile.ca_file).with_certificate(&profile.cert_file, &profile.key_file)
}

/// Connections, and who of them has ended when.
struct Watch {
    ends: Receiver<(usize, Instant)>,
}

impl Watch {
    /// Returns when everybody is connected. The thread ends with the benchmark.
    fn start(hub: Endpoint, identities: Vec<Identity>) -> anyhow::Result<Self> {
        let (noting, ends) = channel();
        let (ready, is_ready) = channel();
        std::thread::spawn(move || {
            let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let outcome = outcome.context("start a runtime").and_then(|runtime| {
                runtime.block_on(async {
                    let connect = identities.iter().map(|identity| RawClient::connect(&hub, identity));
                    let clients = try_join_all(connect).await.context("connect people")?;
                    let _ = ready.send(Ok(()));
                    watch(&clients, &noting).await;
                    Ok(())
                })
            });
            if let Err(error) = outcome {
                let _ = ready.send(Err(error));
            }
        });
        is_ready.recv_timeout(LIMIT).context("people are not connected")??;
        Ok(Self { ends })
    }
}

async fn watch(clients: &[RawClient], noting: &Sender<(usize, Instant)>) {
    let ends = clients.iter().enumerate().map(|(number, client)| async move {
        if client.wait_closed(Duration::MAX).await.is_ok() {
            // Nobody listens any more once the benchmark is over.
            let _ = noting.send((number, Instant::now()));
        }
    });
    futures_util::future::join_all(ends).await;
}
