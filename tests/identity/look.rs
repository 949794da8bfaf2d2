//! What tests see of a hub on which certificates decide, and how they take away what it stands on.

use anyhow::Context;
use bulkhead_accounts::certificates::{CertificateFiles, ClientIdentity};
use bulkhead_accounts::files::{make_folder, write_secret};
use bulkhead_accounts::render::DECISIONS_LOG;
use bulkhead_bus::gate::DECISIONS;
use bulkhead_bus::payload::{ADMITTED, Decision};
use bulkhead_claims::{
    Claims, KeyKind, PermissionSet, SigningKey, UserBody, credentials_text, encode, parse_credentials,
};
use bulkhead_runtime::{Bus, BusSettings, LogSpec, TlsFiles, eventually};
use bulkhead_testkit::Exposition;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::hub::{GateHub, LIMIT};

/// From its decision to its being in the stream.
const RECORDED_WITHIN_MS: i64 = 5_000;

impl GateHub {
    /// In which account and as which user a connection is, by its INFO.
    pub(crate) async fn whereabouts(&self, info: &Value) -> anyhow::Result<(String, String)> {
        let question = json!({ "auth": true, "limit": 1_024 }).to_string();
        let answer = self.system.request("$SYS.REQ.SERVER.PING.CONNZ", question.into(), LIMIT).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let connections = answer["data"]["connections"].as_array().context("connections")?;
        let found = connections.iter().find(|one| one["cid"] == info["client_id"]);
        let found = found.with_context(|| format!("{info} is not among {connections:?}"))?;
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        Ok((text("account"), text("authorized_user")))
    }

    /// The key of SYS or AUTH.
    pub(crate) fn key_of_platform(&self, account: &str) -> String {
        let found = self.platform.operator.account(account).ok().flatten();
        found.expect("it is one of the platform's").key.to_string()
    }

    /// The user whom servers do not ask about, if anybody were that user.
    pub(crate) fn nobody_key(&self) -> &str {
        &self.sent.claims.nats.authorization.auth_users[0]
    }

    /// The public key of a gatekeeper's user in AUTH.
    pub(crate) fn gatekeeper_user(&self, number: usize) -> anyhow::Result<String> {
        let name = format!("gatekeeper-{number}");
        let text = std::fs::read_to_string(self.path().join(&name).join("auth").join(format!("{name}.creds")))?;
        Ok(parse_credentials(&text)?.claims.sub)
    }

    /// The stream of decisions takes nothing, or takes them again.
    pub(crate) async fn close_decisions(&self, is_closed: bool) -> anyhow::Result<()> {
        let max_message_bytes = if is_closed { 1 } else { DECISIONS_LOG.max_message_bytes };
        self.writer.ensure_log(&LogSpec { max_message_bytes, ..DECISIONS_LOG }, 1).await?;
        Ok(())
    }

    /// The bucket is lost.
    pub(crate) async fn drop_bucket(&self) -> anyhow::Result<()> {
        let bus = self.reader().await?;
        let subject = format!("$JS.API.STREAM.DELETE.{}", bulkhead_bus::gate::gate_stream());
        let answer: Value = serde_json::from_slice(&bus.request(&subject, "".into(), LIMIT).await?)?;
        anyhow::ensure!(answer["success"] == true, "{answer}");
        Ok(())
    }

    /// Every decision that is in the stream, oldest first.
    pub(crate) async fn decisions(&self) -> anyhow::Result<Vec<Decision>> {
        Ok(self.stored_decisions().await?.into_iter().map(|(decision, _)| decision).collect())
    }

    /// What was refused until now was in the stream within the time that is promised.
    pub(crate) async fn expect_recorded_in_time(&self) -> anyhow::Result<()> {
        let refused: Vec<_> =
            self.stored_decisions().await?.into_iter().filter(|(decision, _)| decision.outcome != ADMITTED).collect();
        anyhow::ensure!(!refused.is_empty(), "nothing was refused");
        for (decision, stored_ms) in refused {
            anyhow::ensure!(
                (0..RECORDED_WITHIN_MS).contains(&(stored_ms - decision.at_ms)),
                "{stored_ms}: {decision:?}"
            );
        }
        Ok(())
    }

    /// Every decision, and when its stream took it.
    async fn stored_decisions(&self) -> anyhow::Result<Vec<(Decision, i64)>> {
        let reader = self.reader().await?;
        let mut found = Vec::new();
        for sequence in 1.. {
            let question = json!({ "seq": sequence }).to_string();
            let subject = format!("$JS.API.STREAM.MSG.GET.{DECISIONS}");
            let answer = reader.request(&subject, question.into(), LIMIT).await?;
            let answer: Value = serde_json::from_slice(&answer)?;
            let Some(data) = answer["message"]["data"].as_str() else { break };
            let stored = answer["message"]["time"].as_str().context("when it was stored")?;
            let stored_ms = OffsetDateTime::parse(stored, &Rfc3339)?.unix_timestamp_nanos() / 1_000_000;
            let decision = serde_json::from_slice(&data_encoding::BASE64.decode(data.as_bytes())?)?;
            found.push((decision, i64::try_from(stored_ms)?));
        }
        Ok(found)
    }

    /// Somebody in AUTH who may do anything, by a key that the test puts into the account.
    async fn reader(&self) -> anyhow::Result<Bus> {
        let folder = self.path().join("reader");
        make_folder(&folder)?;
        let key = SigningKey::generate(KeyKind::User);
        let all = || PermissionSet { allow: vec![">".to_owned()], ..PermissionSet::default() };
        let body = UserBody::unscoped(self.auth.key.to_string(), all(), all());
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut claims = Claims::new(key.public().to_owned(), "reader".to_owned(), now, body);
        let token = encode(&mut claims, &self.plain)?;
        write_secret(&folder.join("reader.creds"), credentials_text(&token, &key)?.as_bytes())?;
        let files = CertificateFiles::named(&folder, "reader");
        let identity = ClientIdentity::Service { service: "audit" };
        self.platform.authority.issue_client(&identity, &files, OffsetDateTime::now_utc())?;
        let settings = BusSettings {
            urls: self.platform.hub_urls.clone(),
            tls: TlsFiles {
                ca_file: self.platform.authority.server_root_file(),
                cert_file: files.cert_file,
                key_file: files.key_file,
            },
            creds_file: Some(folder.join("reader.creds")),
            inbox_prefix: "_INBOX_reader".to_owned(),
        };
        Ok(Bus::connect(&settings, "reader").await?)
    }

    /// Waits until there are more decisions like this than `before`.
    pub(crate) async fn more_decided(&self, before: usize, is_it: impl Fn(&Decision) -> bool) -> anyhow::Result<()> {
        let more = eventually("one more decision", LIMIT, || async {
            let decisions = self.decisions().await.map_err(|error| format!("{error:#}"))?;
            let count = decisions.iter().filter(|one| is_it(one)).count();
            if count > before { Ok(()) } else { Err(format!("{count} of {} decisions", decisions.len())) }
        });
        Ok(more.await?)
    }

    /// Waits until the first gatekeeper has refused something that the bucket says.
    pub(crate) async fn until_refused(&self) -> anyhow::Result<()> {
        let last = self.health_ports.last().copied().context("a gatekeeper runs")?;
        counted(last, "gatekeeper_records_refused_total").await
    }

    /// Waits until every gatekeeper has looked at everybody once: the next time is after minutes.
    pub(crate) async fn until_swept(&self) -> anyhow::Result<()> {
        for &port in &self.health_ports {
            counted(port, "gatekeeper_sweeps_total").await?;
        }
        Ok(())
    }

    /// The bucket is there again, and empty.
    pub(crate) async fn make_bucket(&self) -> anyhow::Result<()> {
        Ok(self.writer.ensure_bucket(&bulkhead_accounts::render::GATE, 1).await?)
    }

    /// Waits for a decision like this.
    pub(crate) async fn decided(&self, what: &str, is_it: impl Fn(&Decision) -> bool) -> anyhow::Result<Decision> {
        let found = eventually(what, LIMIT, || async {
            let decisions = self.decisions().await.map_err(|error| format!("{error:#}"))?;
            let outcomes: Vec<_> = decisions.iter().map(|one| one.outcome.clone()).collect();
            decisions.into_iter().rev().find(|one| is_it(one)).ok_or(format!("{outcomes:?}"))
        });
        Ok(found.await?)
    }
}

/// Waits until a gatekeeper has counted something.
async fn counted(port: u16, counter: &str) -> anyhow::Result<()> {
    let counted = eventually(counter, LIMIT, || async move {
        let page = bulkhead_testkit::scrape::get(port, "/metrics").await;
        let (_, page) = page.map_err(|error| format!("{error:#}"))?;
        let page = Exposition::parse(&page).map_err(|error| format!("{error:#}"))?;
        match page.value(counter, &[]) {
            Some(count) if count > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    Ok(counted.await?)
}
