//! The attackers against a real hub: what an honest client may do they can do too, so that a refusal means something.

#![expect(clippy::unwrap_used, reason = "what cannot be set up is a failed test, in shared steps too")]

mod hub;
mod link;

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use bulkhead_accounts::nats_config::LeafConfig;
use bulkhead_testkit::{
    CertificatePair, Closed, ConnectError, Endpoint, FakeHub, Flushed, Handshake, Identity, Link, LogGate,
    LogGateError, RawClient, RawLeaf, RouteOutcome, TcpProxy, Visit, header_block, try_route,
};

use crate::hub::{ACME, Hub, READY, XYZ, start_server};

const LIMIT: Duration = Duration::from_secs(10);

async fn reader(hub: &Hub) -> RawClient {
    let reader = RawClient::connect(&hub.client_endpoint(), &hub.live_reader()).await.unwrap();
    reader.subscribe("t.*.live.*.*.*").await.unwrap();
    assert_eq!(reader.flush().await.unwrap(), Flushed::Answered);
    assert_eq!(reader.errors(), Vec::<String>::new());
    reader
}

#[tokio::test]
async fn what_a_client_may_do_arrives_under_the_prefix_that_the_server_writes() {
    let hub = Hub::start().await;
    let reader = reader(&hub).await;
    let poller = RawClient::connect(&hub.client_endpoint(), &hub.poller(ACME, "oslo", "p1")).await.unwrap();
    let block = header_block(&[("Kind", "raw"), ("Kind-Two", "x:y")]);
    poller.publish("live.oslo.p1.tcp", None, Some(&block), b"up\r\n\0").await.unwrap();
    poller.publish("live.oslo.p1.tcp", None, None, b"").await.unwrap();
    assert_eq!(poller.flush().await.unwrap(), Flushed::Answered);
    assert_eq!(poller.errors(), Vec::<String>::new());
    let subject = format!("t.{}.live.oslo.p1.tcp", hub.key_of(ACME));
    let message = reader.wait_for(LIMIT, |message| message.body.as_ref() == b"up\r\n\0").await.unwrap();
    assert_eq!((message.subject.as_str(), message.header("kind-two")), (subject.as_str(), Some("x:y")));
    reader.wait_for(LIMIT, |message| message.body.is_empty() && message.headers.is_none()).await.unwrap();
    assert_eq!(reader.received().len(), 2);
    let seen = reader.wait_for(Duration::from_millis(50), |message| message.subject == "other").await.unwrap_err();
    assert!(seen.to_string().contains(&subject), "{seen}");
}

#[tokio::test]
async fn what_a_client_may_not_do_is_answered_before_the_flush_is() {
    let hub = Hub::start().await;
    let reader = reader(&hub).await;
    let poller = RawClient::connect(&hub.client_endpoint(), &hub.poller(ACME, "oslo", "p1")).await.unwrap();
    let foreign = format!("t.{}.live.oslo.p1.tcp", hub.key_of(XYZ));
    poller.publish(&foreign, None, None, b"forged").await.unwrap();
    poller.publish("live.oslo.p2.tcp", None, None, b"forged").await.unwrap();
    poller.subscribe(">").await.unwrap();
    // One publish that is allowed, with another injected behind a line end in its subject.
    poller.publish("live.oslo.p1.tcp 0\r\n\r\nPUB $SYS.REQ.SERVER.PING", None, None, b"").await.unwrap();
    assert_eq!(poller.flush().await.unwrap(), Flushed::Answered);
    let errors = poller.errors();
    let expected = [foreign.as_str(), "live.oslo.p2.tcp", ">", "$SYS.REQ.SERVER.PING"];
    assert_eq!(errors.len(), expected.len(), "{errors:?}");
    for (error, subject) in errors.iter().zip(expected) {
        assert!(error.starts_with("Permissions Violation") && error.contains(&format!("\"{subject}\"")), "{error}");
    }
    reader.wait_for(LIMIT, |message| message.body.is_empty()).await.unwrap();
    assert_eq!(reader.received().len(), 1, "{:?}", reader.received());
    poller.send_raw(b"PING\r\nSAY hello\r\n").await.unwrap();
    assert!(matches!(poller.flush().await.unwrap(), Flushed::Closed(_)));
    assert!(poller.is_closed() && poller.errors().concat().contains("Unknown Protocol Operation"));
    assert_eq!(poller.wait_closed(LIMIT).await.unwrap(), Closed::Ended);
}

#[tokio::test]
async fn a_refusal_has_its_cause_and_is_not_taken_for_an_absence() {
    let hub = Hub::start().await;
    let poller = hub.poller(ACME, "oslo", "p1");
    let endpoint = hub.client_endpoint();
    let check = async |endpoint: &Endpoint, identity: &Identity, expected: &str| {
        let error = RawClient::connect(endpoint, identity).await.err().expect("no connection");
        assert!(format!("{error:?}").contains(expected), "{error:?} is not {expected}");
    };
    check(&endpoint, &Identity { certificate: None, ..poller.clone() }, "RefusedTls(\"CertificateRequired\")").await;
    let route = hub.route_certificate();
    let foreign = poller.clone().with_certificate(route.cert_file, route.key_file);
    check(&endpoint, &foreign, "RefusedTls(\"").await;
    check(&endpoint, &Identity { creds_file: None, ..poller.clone() }, "Refused(\"Authorization Violation\")").await;
    let forged = poller.clone().with_field("sig", "AAAA");
    check(&endpoint, &forged, "Refused(\"Authorization Violation\")").await;
    check(&endpoint, &hub.leaf_of(ACME, "oslo"), "Refused(\"Authorization Violation\")").await;
    let distrusting = Identity { ca_file: hub.platform.authority.client_root_file(), ..poller.clone() };
    check(&endpoint, &distrusting, "Untrusted(").await;
    let clear = Endpoint { handshake: Handshake::Never, ..endpoint.clone() };
    check(&clear, &poller, "Closed").await;
    let absent = poller.clone().with_creds(hub.folder().join("absent.creds"));
    check(&endpoint, &absent, "Identity(").await;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    check(&Endpoint { addr: free, ..endpoint }, &poller, "Unreachable").await;
}

#[tokio::test]
async fn a_leaf_that_obeys_nothing_is_thrown_out_when_it_leaves_its_site() {
    let hub = Hub::start().await;
    let reader = reader(&hub).await;
    let leaf = hub.leaf_of(ACME, "oslo");
    let connect = async || RawLeaf::connect(&hub.leaf_endpoint(), &leaf, "leaf-acme-corp-oslo").await.unwrap();
    let honest = connect().await;
    honest.lmsg("live.oslo.p1.tcp", None, b"plain").await.unwrap();
    let block = header_block(&[("Kind", "leaf")]);
    honest.lmsg_with_headers("live.oslo.p1.tcp", Some("r"), Some(&block), b"headed").await.unwrap();
    assert_eq!(honest.flush().await.unwrap(), Flushed::Answered);
    reader.wait_for(LIMIT, |message| message.body == "plain").await.unwrap();
    let headed = reader.wait_for(LIMIT, |message| message.body == "headed").await.unwrap();
    assert_eq!(headed.header("Kind"), Some("leaf"));
    assert!(honest.hub_interest().iter().any(|subject| subject == "up.>"), "{:?}", honest.hub_interest());
    assert!(honest.infos().len() > 1, "the hub tells a leaf its permissions");
    drop(honest);
    for subject in [format!("t.{}.up.oslo.fwd.results", hub.key_of(XYZ)), "live.bergen.p1.tcp".to_owned()] {
        let hostile = connect().await;
        hostile.lmsg(&subject, None, b"forged").await.unwrap();
        hostile.wait_closed(LIMIT).await.unwrap();
    }
    assert!(reader.received().iter().all(|message| message.body != "forged"));
}

#[tokio::test]
async fn a_leaf_that_asks_for_everything_hears_only_its_own_site() {
    let hub = Hub::start().await;
    let leaf = RawLeaf::connect(&hub.leaf_endpoint(), &hub.leaf_of(ACME, "oslo"), "leaf-a").await.unwrap();
    for pattern in [">", "t.*.>", "live.>"] {
        leaf.subscribe(pattern).await.unwrap();
    }
    assert_eq!(leaf.flush().await.unwrap(), Flushed::Answered);
    let foreign = RawClient::connect(&hub.client_endpoint(), &hub.poller(XYZ, "oslo", "p1")).await.unwrap();
    foreign.publish("live.oslo.p1.tcp", None, None, b"foreign").await.unwrap();
    assert_eq!(foreign.flush().await.unwrap(), Flushed::Answered);
    let dispatcher = RawClient::connect(&hub.client_endpoint(), &hub.dispatcher()).await.unwrap();
    for (tenant, site) in [(XYZ, "oslo"), (ACME, "bergen"), (ACME, "oslo")] {
        let subject = format!("t.{}.down.{site}.p1.assign", hub.key_of(tenant));
        dispatcher.publish(&subject, None, None, b"wake up").await.unwrap();
    }
    assert_eq!(dispatcher.flush().await.unwrap(), Flushed::Answered);
    assert_eq!(dispatcher.errors(), Vec::<String>::new());
    // The last that was sent: what else was to come has come before it.
    leaf.wait_for(LIMIT, |message| message.subject == "down.oslo.p1.assign").await.unwrap();
    let received = leaf.received();
    assert!(received.iter().all(|message| message.subject == "down.oslo.p1.assign"), "{received:?}");
    leaf.unsubscribe(">").await.unwrap();
    assert_eq!(leaf.flush().await.unwrap(), Flushed::Answered);
    let nobody = RawLeaf::connect(&hub.leaf_endpoint(), &hub.nobody(), "leaf-n").await.err().unwrap();
    assert!(matches!(nobody, ConnectError::RefusedTls(_)), "{nobody:?}");
    let client = RawLeaf::connect(&hub.leaf_endpoint(), &hub.poller(ACME, "oslo", "p1"), "leaf-p").await.err().unwrap();
    assert!(matches!(client, ConnectError::Refused(_)), "{client:?}");
}

#[tokio::test]
async fn only_a_certificate_of_the_route_root_joins_the_hubs() {
    let hub = Hub::start_with_routes().await;
    let listener = hub.route.unwrap();
    let route = hub.route_certificate();
    let trusted = hub.nobody().with_certificate(route.cert_file, route.key_file);
    let hub_pair = hub.hub_certificate();
    let client = hub.nobody().with_certificate(hub_pair.cert_file, hub_pair.key_file);
    for identity in [hub.nobody(), hub.poller(ACME, "oslo", "p1"), hub.leaf_of(ACME, "oslo"), client] {
        let outcome = try_route(listener, &identity).await.unwrap();
        assert!(matches!(outcome, RouteOutcome::RefusedTls(_)), "{outcome:?}");
    }
    assert_eq!(try_route(listener, &trusted).await.unwrap(), RouteOutcome::Accepted);
    let absent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    assert!(matches!(try_route(absent, &trusted).await, Err(ConnectError::Unreachable { .. })));
}

/// The product's own leaf configuration, looking for its hub at `hub_url`.
pub(crate) fn leaf_config(hub: &Hub, leaf: &Identity, hub_url: String) -> LeafConfig {
    let CertificatePair { cert_file, key_file } = leaf.certificate.clone().unwrap();
    let tenant = ACME.parse().unwrap();
    LeafConfig {
        server_name: "leaf-acme-corp-oslo".to_owned(),
        client_listen: "127.0.0.1:-1".to_owned(),
        store_dir: hub.folder().join("leaf-js"),
        domain: "acme-corp-oslo".to_owned(),
        max_file_bytes: 1 << 20,
        listener_cert_file: cert_file.clone(),
        listener_key_file: key_file.clone(),
        tenant_intermediate_file: hub.platform.authority.tenant_intermediate_file(&tenant),
        users: vec![],
        keeper: None,
        link_file: None,
        proxy: None,
        hub_urls: vec![hub_url],
        reconnect: "1s".to_owned(),
        kept: vec!["results.>".to_owned()],
        leaf_cert_file: cert_file,
        leaf_key_file: key_file,
        server_root_file: leaf.ca_file.clone(),
    }
}

#[tokio::test]
async fn a_real_leaf_tells_nobody_but_a_hub_that_it_is_there_and_nobody_a_secret() {
    let hub = Hub::start().await;
    let leaf = hub.leaf_of(ACME, "oslo");
    for (name, certificate, is_trusted) in
        [("tenants", leaf.certificate.clone().unwrap(), false), ("hubs", hub.hub_certificate(), true)]
    {
        let fake = FakeHub::start(&certificate).await.unwrap();
        let config = leaf_config(&hub, &leaf, format!("tls://{}", fake.addr)).render().unwrap();
        let (_process, _) = start_server(hub.folder(), name, &config, READY).await;
        if is_trusted {
            let visit = fake.wait_for_visit(LIMIT, |visit| matches!(visit, Visit::Connected(_))).await.unwrap();
            let Visit::Connected(connect) = visit else { panic!("{visit:?}") };
            // Its name, and nothing that anybody could use elsewhere.
            assert_eq!(connect["name"], "leaf-acme-corp-oslo");
            let is_secret = |name: &str| connect.get(name).is_some_and(|value| value != "");
            assert!(!["jwt", "sig", "nkey", "user", "pass", "auth_token"].into_iter().any(is_secret), "{connect}");
        } else {
            fake.wait_for_visit(LIMIT, |visit| matches!(visit, Visit::RefusedTls(_))).await.unwrap();
            assert!(fake.visits().iter().all(|visit| matches!(visit, Visit::RefusedTls(_))), "{:?}", fake.visits());
        }
    }
}

#[tokio::test]
async fn a_cut_link_ends_connections_and_a_mended_one_admits_them_again() {
    let hub = Hub::start().await;
    let proxy = TcpProxy::start(hub.leaf).await.unwrap();
    let endpoint = Endpoint { addr: proxy.addr, ..hub.leaf_endpoint() };
    let identity = hub.leaf_of(ACME, "oslo");
    let leaf = RawLeaf::connect(&endpoint, &identity, "leaf-acme-corp-oslo").await.unwrap();
    proxy.set(Link::Cut);
    assert_eq!(leaf.wait_closed(LIMIT).await.unwrap(), Closed::Ended);
    let cut = RawLeaf::connect(&endpoint, &identity, "leaf-acme-corp-oslo").await.err().unwrap();
    assert!(matches!(cut, ConnectError::Closed | ConnectError::Unreachable { .. }), "{cut:?}");
    proxy.set(Link::Slow(Duration::from_millis(20)));
    let leaf = RawLeaf::connect(&endpoint, &identity, "leaf-acme-corp-oslo").await.unwrap();
    assert_eq!(leaf.flush().await.unwrap(), Flushed::Answered);
}

#[tokio::test]
async fn the_log_gate_sees_an_attack_in_the_hubs_log() {
    let hub = Hub::start().await;
    let check = |allowed: &[&str]| {
        let gate = LogGate::allowing(allowed).unwrap();
        gate.check("hub", std::fs::read_to_string(&hub.log_file).unwrap().lines())
    };
    check(&[]).unwrap();
    let poller = RawClient::connect(&hub.client_endpoint(), &hub.poller(ACME, "oslo", "p1")).await.unwrap();
    poller.publish("$SYS.REQ.SERVER.PING", None, None, b"").await.unwrap();
    poller.flush().await.unwrap();
    let Err(LogGateError::Unlisted { lines, .. }) = check(&[]) else { panic!("the attack is not in the log") };
    assert!(lines.len() == 1 && lines[0].contains("$SYS.REQ.SERVER.PING"), "{lines:?}");
    check(&["Publish Violation - Subject"]).unwrap();
}
