//! What a real leaf lets pass to a hub that asks for everything, and from a hub that says everything: the leaf's own lists
//! decide, because a hub that is not ours would have none.

use std::net::SocketAddr;

use bulkhead_accounts::nats_config::LeafUser;
use bulkhead_accounts::up::KEPT;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{Endpoint, Flushed, Handshake, Identity, RawClient};

use crate::hub::{ACME, Hub, READY, listener, start_server};
use crate::{LIMIT, leaf_config};

/// One below each pattern that is kept, and one that is not.
const OWN: [&str; 4] = ["results.oslo.p1.tcp", "$JS.x.y", "$KV.bucket.key", "$SYS.x.y"];
const PASSES: &str = "live.oslo.p1.tcp";
const LAST: &str = "live.oslo.p1.last";

/// A hub that has no accounts and refuses nobody of the client root.
fn lawless_hub(hub: &Hub) -> String {
    let certificate = hub.hub_certificate();
    format!(
        "server_name: lawless\nlisten: \"127.0.0.1:-1\"\nleafnodes {{ listen: \"127.0.0.1:-1\", tls {{ cert_file: {:?}, \
         key_file: {:?}, ca_file: {:?}, verify: true, handshake_first: true }} }}\n",
        certificate.cert_file,
        certificate.key_file,
        hub.platform.authority.client_root_file()
    )
}

/// How somebody asks for everything: what a leaf does about the two is not decided by the same list.
#[derive(Debug, Clone, Copy)]
enum Asking {
    AtOnce,
    ByName,
}

/// Somebody at either end who hears everything.
async fn listen(addr: SocketAddr, handshake: Handshake, identity: &Identity, asking: Asking) -> RawClient {
    let endpoint = Endpoint { addr, server_name: "localhost".to_owned(), handshake };
    let client = RawClient::connect(&endpoint, identity).await.unwrap();
    let by_name = [OWN.as_slice(), &[PASSES, LAST]].concat();
    let patterns = match asking {
        Asking::AtOnce => vec![">"],
        Asking::ByName => by_name,
    };
    for pattern in patterns {
        client.subscribe(pattern).await.unwrap();
    }
    assert_eq!(client.flush().await.unwrap(), Flushed::Answered);
    assert_eq!(client.errors(), Vec::<String>::new());
    client
}

async fn say(client: &RawClient, subject: &str, body: &str) {
    client.publish(subject, None, None, body.as_bytes()).await.unwrap();
    assert_eq!(client.flush().await.unwrap(), Flushed::Answered);
}

/// Which of its own subjects pass from `from` to `to`. Everybody hears also what he says himself: `way` tells it apart.
async fn passed(from: &RawClient, to: &RawClient, way: &str) -> Vec<String> {
    let has_heard =
        |subject: &str| to.received().iter().any(|message| message.subject == subject && message.body == way);
    let linked = eventually("a message that passes the link", LIMIT, || async {
        say(from, PASSES, way).await;
        if has_heard(PASSES) { Ok(()) } else { Err("nothing") }
    });
    linked.await.unwrap();
    for subject in OWN {
        say(from, subject, way).await;
    }
    // What was said before it has come before it.
    say(from, LAST, way).await;
    to.wait_for(LIMIT, |message| message.subject == LAST && message.body == way).await.unwrap();
    OWN.iter().filter(|own| has_heard(own)).map(|own| (*own).to_owned()).collect()
}

/// What passes to the hub, and what comes from it, when the leaf keeps `kept`.
async fn both_ways(hub: &Hub, kept: &[&str], asking: Asking) -> [Vec<String>; 2] {
    let name = format!("leaf-{}-{asking:?}", kept.len());
    let (_lawless, log) = start_server(hub.folder(), &format!("{name}-hub"), &lawless_hub(hub), READY).await;
    let log = std::fs::read_to_string(log).unwrap();
    let (hub_client, hub_leaf) = (listener(&log, "client"), listener(&log, "leafnode"));
    let mut config = leaf_config(hub, &hub.leaf_of(ACME, "oslo"), format!("tls://localhost:{}", hub_leaf.port()));
    let certificate = hub.hub_certificate();
    (config.listener_cert_file, config.listener_key_file) = (certificate.cert_file, certificate.key_file);
    let everything = || vec![">".to_owned()];
    let user = "p1.oslo.acme-corp.serviceradar".to_owned();
    config.users = vec![LeafUser { name: user, publish: everything(), subscribe: everything() }];
    config.kept = kept.iter().map(|&kept| kept.to_owned()).collect();
    config.store_dir = hub.folder().join(format!("{name}-js"));
    let (_leaf, log) = start_server(hub.folder(), &name, &config.render().unwrap(), READY).await;
    let local = listener(&std::fs::read_to_string(log).unwrap(), "client");
    let there = listen(hub_client, Handshake::Never, &hub.nobody(), asking).await;
    let mut poller = hub.poller(ACME, "oslo", "p1");
    poller.creds_file = None;
    let here = listen(local, Handshake::AfterInfo, &poller, asking).await;
    [passed(&here, &there, "out").await, passed(&there, &here, "in").await]
}

#[tokio::test]
async fn what_is_a_sites_own_passes_its_link_in_neither_direction() {
    let hub = Hub::start().await;
    for own in OWN {
        assert!(KEPT.iter().any(|kept| own.starts_with(kept.trim_end_matches('>'))), "{own} is kept by nothing");
    }
    // Control: without its lists the same leaf lets them pass, but for what a server with JetStream keeps by itself.
    let by_lists = OWN.into_iter().filter(|own| !own.starts_with("$KV.")).map(str::to_owned).collect::<Vec<_>>();
    for asking in [Asking::AtOnce, Asking::ByName] {
        assert_eq!(both_ways(&hub, &KEPT, asking).await, [const { Vec::<String>::new() }; 2], "{asking:?}");
        assert_eq!(both_ways(&hub, &[], asking).await, [by_lists.clone(), by_lists.clone()], "{asking:?}");
    }
}
