//! Messages into a running deployment, from a hostile leaf and from a hostile client of the leaf: every one is stored,
//! dead-lettered once with its reason, or refused by a server, and the real results around it are all there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bulkhead_accounts::up::child::log_tail;
use bulkhead_bus::header::{self, Sequence};
use bulkhead_runtime::eventually;
use bulkhead_testkit::{Endpoint, Handshake, Identity, LIMIT, RawClient, RawLeaf, TestDeployment, header_block};
use nkeys::KeyPair;
use serde_json::Value;
use sqlx::PgPool;

use crate::bodies::{self, Case};
use crate::{FORGED, HONEST};

const FORWARDED: &str = "up.oslo.fwd.results";
const EDGE: &str = "results.p1";
const MIB: usize = 1024 * 1024;

/// Acme's site oslo, with all that its poller holds.
struct Site<'a> {
    deployment: &'a TestDeployment,
    witness: PgPool,
    key: KeyPair,
}

/// One way into the platform.
enum Door {
    /// As a leaf, past the site's own leaf.
    Hub(RawLeaf),
    /// As the poller on the site's own leaf.
    Edge(RawClient),
}

impl Door {
    /// Sends once and returns the stream's answer.
    async fn send(&self, inbox: &str, headers: &str, body: &[u8]) -> anyhow::Result<Value> {
        let is_answer = |message: &bulkhead_testkit::RawMessage| message.subject == inbox;
        let answer = match self {
            Self::Hub(leaf) => {
                leaf.lmsg_with_headers(FORWARDED, Some(inbox), Some(headers), body).await?;
                leaf.wait_for(LIMIT, is_answer).await
            }
            Self::Edge(client) => {
                client.publish(EDGE, Some(inbox), Some(headers), body).await?;
                client.wait_for(LIMIT, is_answer).await
            }
        };
        serde_json::from_slice(&answer.context("wait for the stream's answer")?.body).context("read the answer")
    }

    /// Sends a header block that need not be one.
    async fn send_block(&self, block: &[u8], body: &[u8]) -> anyhow::Result<()> {
        let sizes = format!("{} {}\r\n", block.len(), block.len() + body.len());
        let message = |line: String| [line.as_bytes(), block, body, b"\r\n"].concat();
        match self {
            Self::Hub(leaf) => leaf.send_raw(&message(format!("HMSG {FORWARDED} {sizes}"))).await,
            Self::Edge(client) => client.send_raw(&message(format!("HPUB {EDGE} {sizes}"))).await,
        }
    }

    /// Sends until the stream has room for it, and fails for any other refusal.
    async fn store(&self, inbox: &str, headers: &str, body: &[u8]) -> anyhow::Result<()> {
        let mut attempt = 0;
        let stored = eventually("room in the stream", LIMIT, || {
            attempt += 1;
            let inbox = format!("{inbox}-{attempt}");
            async move {
                let answer = self.send(&inbox, headers, body).await.map_err(|error| format!("{error:#}"))?;
                let is_full = answer["error"]["err_code"] == 10_077 || answer["error"]["code"] == 503;
                if is_full { Err(answer.to_string()) } else { Ok(answer) }
            }
        });
        let answer = stored.await?;
        anyhow::ensure!(answer["error"].is_null() && answer["seq"].is_u64(), "{answer}");
        Ok(())
    }
}

impl<'a> Site<'a> {
    async fn open(deployment: &'a TestDeployment) -> anyhow::Result<Self> {
        let folder = deployment.up.layout.poller(&"acme-corp".parse()?, &"oslo".parse()?, &"p1".parse()?);
        let seed = fs::read_to_string(folder.join("batch.nk")).context("read a batch key")?;
        let key = KeyPair::from_seed(seed.trim()).context("read a batch key")?;
        Ok(Self { deployment, witness: deployment.witness().await?, key })
    }

    async fn leaf(&self, name: &str) -> anyhow::Result<Door> {
        let identity = self.deployment.leaf_identity("acme-corp", "oslo")?;
        let name = format!("leaf-acme-corp-oslo.{name}");
        let leaf = RawLeaf::connect(&self.deployment.hub_for_leaves(), &identity, &name).await?;
        leaf.subscribe("_INBOX_oslo.>").await?;
        Ok(Door::Hub(leaf))
    }

    /// The site's own leaf, with the certificate of its poller.
    async fn edge(&self) -> anyhow::Result<Door> {
        let layout = &self.deployment.up.layout;
        let site = layout.site(&"acme-corp".parse()?, &"oslo".parse()?);
        let settings = fs::read_to_string(site.join("pollers/p1/poller.toml")).context("read poller.toml")?;
        let port = settings.split("tls://127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next());
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port.context("leaf's port")?.parse()?));
        let endpoint = Endpoint { addr, server_name: "localhost".to_owned(), handshake: Handshake::AfterInfo };
        let own = site.join("pollers/p1");
        let identity = Identity::trusting(site.join("tls/listener.crt"))
            .with_certificate(own.join("poller.crt"), own.join("poller.key"));
        let client = RawClient::connect(&endpoint, &identity).await.context("connect to the leaf")?;
        client.subscribe("_INBOX_oslo.p1.>").await?;
        Ok(Door::Edge(client))
    }

    fn headers(&self, sequence: Sequence, body: &[u8]) -> anyhow::Result<String> {
        let signature = self.key.sign(&header::signed_bytes(sequence, body)).context("sign a batch")?;
        let (signature, sequence) = (header::encode_signature(&signature), sequence.to_string());
        let key = self.key.public_key();
        Ok(header_block(&[(header::SIGNATURE, &signature), (header::KEY, &key), (header::SEQUENCE, &sequence)]))
    }

    /// Row and reason of every dead letter of acme-corp whose headers hold `mark`.
    async fn letters(&self, mark: &str) -> anyhow::Result<Vec<(i32, String)>> {
        let sql = "select d.row_index, d.reason from everywhere.dead_letter d join platform.tenant t using (tenant_id)
                   where t.slug = 'acme-corp' and position($1 in d.headers) > 0 order by d.row_index";
        sqlx::query_as(sql).bind(mark).fetch_all(&self.witness).await.context("read dead letters")
    }

    /// The reason of every dead letter with this body.
    async fn letters_with(&self, body: &[u8]) -> anyhow::Result<Vec<String>> {
        let sql = "select reason from everywhere.dead_letter where payload = $1";
        sqlx::query_scalar(sql).bind(body).fetch_all(&self.witness).await.context("read dead letters")
    }

    async fn rows_of(&self, check: &str) -> anyhow::Result<i64> {
        let sql = "select count(*) from everywhere.result r join platform.tenant t using (tenant_id)
                   where t.slug = 'acme-corp' and r.check_name = $1";
        sqlx::query_scalar(sql).bind(check).fetch_one(&self.witness).await.context("read results")
    }

    /// What became of a case that was sent under `mark`, as far as it is not what should have.
    async fn look(&self, case: &Case, mark: &str) -> anyhow::Result<Option<String>> {
        let letters = self.letters(mark).await?;
        let expected: Vec<_> = case.letters.iter().map(|(row, reason)| (*row, (*reason).to_owned())).collect();
        if letters != expected {
            return Ok(Some(format!("{}: dead letters {letters:?}, not {expected:?}", case.what)));
        }
        for check in &case.stored {
            let rows = self.rows_of(check).await?;
            if rows != 1 {
                return Ok(Some(format!("{}: {rows} rows of {check}, not 1", case.what)));
            }
        }
        Ok(None)
    }

    /// Sends every case twice and waits until all of them are where they belong. `boot` marks this way's letters.
    async fn send_all(&self, door: &Door, way: &str, boot: u64) -> anyhow::Result<()> {
        let cases = bodies::all(way);
        let mut marks = Vec::new();
        for (case, number) in cases.iter().zip(boot..) {
            let sequence = Sequence { boot: number, number: 1 };
            let headers = self.headers(sequence, &case.body)?;
            for time in 0..2 {
                let inbox = format!("_INBOX_oslo.p1.{number}-{time}");
                door.store(&inbox, &headers, &case.body).await.with_context(|| case.what.to_owned())?;
            }
            marks.push(sequence.to_string());
        }
        // It comes behind all of them: when it is stored, they have been decided about, the second times included.
        self.send_honest(door, &format!("{FORGED}last-{way}"), boot + 500).await?;
        let settled = eventually("every bad message in its place", LIMIT, || async {
            let mut wrong = Vec::new();
            for (case, mark) in cases.iter().zip(&marks) {
                wrong.extend(self.look(case, mark).await.map_err(|error| format!("{error:#}"))?);
            }
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
        });
        settled.await.with_context(|| format!("by way of the {way}"))
    }

    async fn send_honest(&self, door: &Door, check: &str, boot: u64) -> anyhow::Result<()> {
        let case = bodies::honest(check);
        let sequence = Sequence { boot, number: 1 };
        let inbox = format!("_INBOX_oslo.p1.honest-{boot}");
        door.store(&inbox, &self.headers(sequence, &case.body)?, &case.body).await?;
        let stored = eventually("an honest batch in the database", LIMIT, || async {
            let wrong = self.look(&case, &sequence.to_string()).await.map_err(|error| format!("{error:#}"))?;
            wrong.map_or(Ok(()), Err)
        });
        stored.await.context("after what went before")
    }

    /// What is larger than a batch may be is refused by the stream, and what is larger than a message by the server.
    async fn send_large(&self, name: &str, boot: u64) -> anyhow::Result<()> {
        let doors = [self.leaf(name).await?, self.edge().await?];
        for (door, number) in doors.into_iter().zip(boot..) {
            for body in [vec![b' '; 70 * 1024], bodies::rows_of(1_001)] {
                let inbox = format!("_INBOX_oslo.p1.large-{number}-{}", body.len());
                let answer = door.send(&inbox, &header_block(&[]), &body).await?;
                assert_eq!(answer["error"]["err_code"], 10_054, "{answer}");
            }
            // The connection has taken no harm.
            self.send_honest(&door, &format!("{FORGED}large-{number}"), number).await?;
            let body = vec![b'x'; 2 * MIB];
            // The server may close before it has read everything.
            let closed = match &door {
                Door::Hub(leaf) => {
                    let _ = leaf.lmsg(FORWARDED, None, &body).await;
                    leaf.wait_closed(LIMIT).await
                }
                Door::Edge(client) => {
                    let _ = client.publish(EDGE, None, None, &body).await;
                    client.wait_closed(LIMIT).await
                }
            };
            closed.context("2 MiB are taken")?;
        }
        Ok(())
    }

    /// A bundle of a version that core does not understand, around a batch that would be stored if it came alone.
    async fn send_newer_bundle(&self, door: &Door, boot: u64) -> anyhow::Result<()> {
        let check = format!("{FORGED}newer-bundle");
        let body = bodies::honest(&check).body;
        let signed = self.headers(Sequence { boot, number: 1 }, &body)?;
        let headers = signed.replacen("\r\n", "\r\nBulkhead-Bundle: 3\r\n", 1);
        door.store("_INBOX_oslo.p1.newer-bundle", &headers, &body).await?;
        let settled = eventually("a dead letter of the bundle", LIMIT, || async {
            let letters = self.letters_with(&body).await.map_err(|error| format!("{error:#}"))?;
            if letters == ["unknown_version"] { Ok(()) } else { Err(format!("{letters:?}")) }
        });
        settled.await?;
        let sql = "select detail from everywhere.dead_letter where payload = $1";
        let detail: String = sqlx::query_scalar(sql).bind(&body).fetch_one(&self.witness).await?;
        assert_eq!(detail, "the bundle is of version \"3\": version 2 is understood");
        assert_eq!(self.rows_of(&check).await?, 0, "a bundle of another version is read as a batch");
        Ok(())
    }

    /// Header blocks that are none: core's own client must survive reading them.
    async fn send_headers(&self, door: &Door, boot: u64) -> anyhow::Result<()> {
        let blocks: [&[u8]; 11] = [
            // First, while nothing else has made core look at what it was handed.
            b"NATS/1.0\r\nX: a\rb\r\n\r\n",
            b"NATS/1.0\r\nX: folded\r\n a\rb\r\n\r\n",
            b"NATS/1.0\r\nX: a\x00b\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\n: no name\r\n\r\n",
            b"NATS/1.0\r\nspaced name : x\r\n\r\n",
            b"NATS/1.0\r\n\xc3\xa9: x\r\n\r\n",
            b"NATS/1.0 999 What\r\n\r\n",
            b"NATS/1.0\r\nX: folded\r\n over\r\n\r\n",
            b"HTTP/1.1\r\nX: y\r\n\r\n",
            b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
        ];
        let mut sent = Vec::new();
        for (block, number) in blocks.iter().zip(boot..) {
            let check = format!("{FORGED}unsigned-{number}");
            let body = bodies::honest(&check).body;
            door.send_block(block, &body).await?;
            sent.push((String::from_utf8_lossy(block), check, body));
        }
        let settled = eventually("a dead letter for every message", LIMIT * 2, || async {
            for (shown, check, body) in &sent {
                let letters = self.letters_with(body).await.map_err(|error| format!("{error:#}"))?;
                // Where a header can be read, it is none that signs.
                if !matches!(letters.as_slice(), [reason] if reason == "unsigned" || reason == "bad_headers") {
                    return Err(format!("{letters:?} for headers {shown:?}"));
                }
                if self.rows_of(check).await.map_err(|error| format!("{error:#}"))? > 0 {
                    return Err(format!("a row for headers {shown:?}"));
                }
            }
            Ok(())
        });
        let log = self.deployment.up.layout.log("core");
        settled.await.with_context(|| format!("core's log:\n{}", log_tail(&log, 12)))?;
        self.send_honest(door, &format!("{FORGED}behind-headers"), boot + 500).await
    }
}

/// Nothing under xyz-inc but what its own poller measured, and nothing that belongs to nobody.
async fn check_untouched(witness: &PgPool) -> anyhow::Result<()> {
    let sql = "select (select count(*) from everywhere.dead_letter d join platform.tenant t using (tenant_id)
                        where t.slug = 'xyz-inc'),
                      (select count(*) from platform.unclaimed_dead_letter),
                      (select count(*) from everywhere.result r join platform.tenant t using (tenant_id)
                        where t.slug = 'xyz-inc' and (r.vantage, r.poller) is distinct from ('lima', 'p1'))";
    let counts: (i64, i64, i64) = sqlx::query_as(sql).fetch_one(witness).await.context("look at xyz-inc")?;
    assert_eq!(counts, (0, 0, 0), "dead letters of xyz-inc, unclaimed dead letters, foreign results");
    Ok(())
}

#[tokio::test]
async fn bad_messages_are_dead_lettered_once_and_no_result_is_lost_by_them() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let core = deployment.up.core.pid();
    let site = Site::open(&deployment).await?;
    let leaf = site.leaf("raw-leaf-1").await?;
    site.send_all(&leaf, "hub", 1_000_000).await?;
    site.send_all(&site.edge().await?, "edge", 2_000_000).await?;
    site.send_large("raw-leaf-2", 3_000_000).await?;
    site.send_newer_bundle(&leaf, 5_000_000).await.context("send a bundle of another version")?;

    let witness = site.witness;
    deployment.wait_for_results(&witness).await?;
    HONEST.wait_until_gapless(&witness).await?;
    check_untouched(&witness).await?;
    deployment.up.check_running()?;
    assert_eq!(deployment.up.core.pid(), core);
    let log = fs::read_to_string(deployment.up.layout.log("core")).context("read core's log")?;
    assert!(!log.contains("panicked at"), "{log}");
    deployment.stop().await
}

#[tokio::test]
async fn headers_that_cannot_be_read_stop_nobody() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let core = deployment.up.core.pid();
    let site = Site::open(&deployment).await?;
    site.send_headers(&site.leaf("raw-leaf-1").await?, 4_000_000).await?;
    site.send_headers(&site.edge().await?, 5_000_000).await?;
    let witness = site.witness;
    deployment.wait_for_results(&witness).await?;
    HONEST.wait_until_gapless(&witness).await?;
    check_untouched(&witness).await?;
    deployment.up.check_running()?;
    assert_eq!(deployment.up.core.pid(), core, "core did not have to be started again");
    deployment.stop().await
}
