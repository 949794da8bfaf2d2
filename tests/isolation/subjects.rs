//! Every subject that is not its own, said and asked for by a person, by a leaf that obeys nothing, and by a user whom
//! the product never issues: whatever acme-corp's account lets through stays inside it.

use bulkhead_testkit::{LIMIT, RawClient, TestDeployment};
use serde_json::Value;

use crate::bodies::expect_untouched;
use crate::watch::{
    ACME, TENANTS, Watch, Watchers, XYZ, begins, hostile_leaf, settle_client, settle_leaf, subjects_of,
};

/// How the bodies of attacks begin; none may be heard outside acme-corp.
const ATTACK: &str = "attack ";
/// How the bodies of what acme-corp must not hear begin.
const SECRET: &str = "secret ";
/// An acknowledgement that no server makes: of one delivery, at time 1.
pub(crate) const FORGED_ACK: &str = "$JS.ACK.RESULTS.core.1.1.1.1.0";

impl Watchers {
    /// Subjects that belong to another tenant, to CORE, to JetStream, to the system, or to nobody.
    fn foreign_subjects(&self) -> Vec<String> {
        let (acme, xyz) = (&self.acme_key, &self.xyz_key);
        let of_tenants = [acme, xyz].into_iter().flat_map(|key| {
            [
                format!("t.{key}.up.lima.fwd.results"),
                format!("t.{key}.up.oslo.fwd.results"),
                format!("t.{key}.up._user.admin.rpc.core.show_status"),
                format!("t.{key}.live.lima.p1.results"),
                format!("t.{key}.live.oslo.p1.results"),
                format!("t.{key}.down.lima.p1.assign"),
                format!("t.{key}.down.oslo.p1.assign"),
                format!("$SYS.REQ.ACCOUNT.{key}.CONNZ"),
                format!("$SYS.REQ.ACCOUNT.{key}.CLAIMS.LOOKUP"),
                format!("$SYS.ACCOUNT.{key}.CONNECT"),
            ]
        });
        let of_platform = [
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.RESULTS",
            "$JS.API.STREAM.PURGE.RESULTS",
            "$JS.API.STREAM.DELETE.RESULTS",
            "$JS.API.STREAM.MSG.GET.RESULTS",
            "$JS.API.DIRECT.GET.RESULTS",
            "$JS.API.CONSUMER.DELETE.RESULTS.core",
            "$JS.API.CONSUMER.MSG.NEXT.RESULTS.core",
            "$JS.hub.API.STREAM.PURGE.RESULTS",
            "$JS.hub.API.CONSUMER.MSG.NEXT.RESULTS.core",
            "$JS.EVENT.ADVISORY.STREAM.DELETED.RESULTS",
            "$KV.GATE.acme-corp",
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.SERVER.PING.CONNZ",
            "$SYS.REQ.CLAIMS.UPDATE",
            "$SYS.REQ.CLAIMS.LIST",
            "$SYS.REQ.USER.AUTH",
            "_INBOX.attack.1",
            "_INBOX_core-stream.attack",
            "_INBOX_provisioning.attack",
            "_INBOX_lima.fwd.attack",
        ];
        of_tenants.chain(of_platform.map(str::to_owned)).collect()
    }

    /// What is acme-corp's, but not for the person admin and not for the leaf at oslo.
    fn subjects_of_others_in_acme() -> Vec<String> {
        let subjects = [
            "up.lima.fwd.results",
            "up.bergen.fwd.results",
            "up.bergen.fwd.backfill",
            "up._user.other.rpc.core.show_status",
            "live.bergen.p1.results",
            "down.bergen.p1.assign",
            "down.oslo.p1.assign",
            "_INBOX_bergen.fwd.attack",
            "_INBOX_other.attack",
            "$JS.acme-corp-bergen.API.STREAM.PURGE.RESULTS_EDGE",
            "$JS.acme-corp-oslo.API.STREAM.DELETE.RESULTS_EDGE",
            "results.p1",
        ];
        subjects.map(str::to_owned).to_vec()
    }

    /// Whatever acme-corp might overhear is said once, with [`SECRET`] and the account in front.
    async fn tell_secrets(&self) -> anyhow::Result<()> {
        let (acme, xyz) = (&self.acme_key, &self.xyz_key);
        let in_xyz =
            ["live.lima.p1.results", "down.lima.p1.assign", "_INBOX_lima.fwd.1", "_INBOX_admin.1", "results.p1"];
        let in_core = [
            format!("t.{xyz}.down.lima.p1.assign"),
            format!("t.{xyz}.ev.secret"),
            format!("t.{acme}.ev.secret"),
            "_INBOX_core-stream.1".to_owned(),
            "_INBOX_admin.1".to_owned(),
            "_R_.secret.1".to_owned(),
        ];
        let in_acme = ["live.bergen.p1.results", "down.bergen.p1.assign", "_INBOX_bergen.fwd.1", "_INBOX_other.1"];
        for (watch, subjects) in [
            (&self.xyz, in_xyz.map(str::to_owned).to_vec()),
            (&self.core, in_core.to_vec()),
            (&self.acme, in_acme.map(str::to_owned).to_vec()),
        ] {
            for subject in subjects {
                watch.tap.publish(&subject, None, None, format!("{SECRET}of {}", watch.account).as_bytes()).await?;
            }
            settle_client(&watch.tap).await?;
        }
        Ok(())
    }

    fn patterns(&self) -> Vec<String> {
        let fixed = [
            ">",
            "*.>",
            "*.*.>",
            "t.>",
            "t.*.>",
            "up.>",
            "live.>",
            "down.>",
            "results.>",
            "_INBOX.>",
            "_R_.>",
            "$JS.>",
            "$JS.API.>",
            "$JS.ACK.>",
            "$SYS.>",
            "$SYS.REQ.>",
            "_INBOX_bergen.>",
            "_INBOX_lima.>",
            "_INBOX_other.>",
            "_INBOX_core-stream.>",
            "live.bergen.>",
            "down.bergen.>",
            "up.lima.>",
            "down.lima.>",
            "live.lima.>",
        ];
        let keys = [&self.acme_key, &self.xyz_key];
        let of_tenants = keys.into_iter().map(|key| format!("t.{key}.>"));
        fixed.map(str::to_owned).into_iter().chain(of_tenants).collect()
    }
}

/// The hub names every one of `subjects` in a refusal, in the order in which they were tried.
fn expect_refused(errors: &[String], subjects: &[String]) {
    assert_eq!(errors.len(), subjects.len(), "{errors:?}");
    for (error, subject) in errors.iter().zip(subjects) {
        // The hub takes its own domain's name out before it looks at permissions.
        let subject = subject.replace("$JS.hub.", "$JS.");
        assert!(
            error.starts_with("Permissions Violation") && error.contains(&format!("\"{subject}\"")),
            "{error}: {subject}"
        );
    }
}

async fn say_as_client(client: &RawClient, subjects: &[String], body: &str) -> anyhow::Result<()> {
    for subject in subjects {
        client.publish(subject, Some("_INBOX_admin.attack"), None, body.as_bytes()).await?;
    }
    settle_client(client).await
}

async fn ask_as_client(client: &RawClient, patterns: &[String]) -> anyhow::Result<()> {
    for pattern in patterns {
        client.subscribe(pattern).await?;
    }
    settle_client(client).await
}

/// A person with the product's own credentials: each attempt is refused by name.
async fn attack_as_person(deployment: &TestDeployment, watchers: &Watchers) -> anyhow::Result<()> {
    let identity = deployment.person_identity("acme-corp-admin")?;
    let person = RawClient::connect(&deployment.hub(), &identity).await?;
    let mut subjects = watchers.foreign_subjects();
    subjects.extend(Watchers::subjects_of_others_in_acme());
    subjects.extend(["up.oslo.fwd.results", "live.oslo.p1.results", FORGED_ACK, "_R_.attack.1"].map(str::to_owned));
    say_as_client(&person, &subjects, ATTACK).await?;
    expect_refused(&person.errors(), &subjects);

    let person = RawClient::connect(&deployment.hub(), &identity).await?;
    let patterns = watchers.patterns();
    ask_as_client(&person, &patterns).await?;
    expect_refused(&person.errors(), &patterns);
    person.subscribe("_INBOX_admin.>").await?;
    watchers.tell_secrets().await?;
    // Its own inbox is what it may hear; the last thing said in the account arrives there.
    watchers.acme.tap.publish("_INBOX_admin.last", None, None, b"last").await?;
    person.wait_for(LIMIT, |message| message.body == "last").await?;
    assert_eq!(subjects_of(person.received(), |message| begins(message, SECRET)), Vec::<String>::new());
    assert_eq!(watchers.leaks(ATTACK).await?, Vec::<String>::new());
    assert_eq!(watchers.acme.heard(|message| begins(message, ATTACK)), Vec::<String>::new());
    Ok(())
}

/// A leaf is thrown out for what it must not say, and hears nothing but its own site, whatever it asks for.
async fn attack_as_leaf(deployment: &TestDeployment, watchers: &Watchers) -> anyhow::Result<()> {
    let mut subjects = watchers.foreign_subjects();
    subjects.extend(Watchers::subjects_of_others_in_acme());
    for subject in &subjects {
        let leaf = hostile_leaf(deployment, ACME, "oslo").await?;
        leaf.lmsg(subject, Some("_INBOX_oslo.attack"), ATTACK.as_bytes()).await?;
        leaf.wait_closed(LIMIT).await.map_err(|error| error.context(format!("said {subject}")))?;
    }
    assert_eq!(watchers.leaks(ATTACK).await?, Vec::<String>::new());
    watchers.acme.catch_up().await?;
    assert_eq!(watchers.acme.heard(|message| begins(message, ATTACK)), Vec::<String>::new());

    // The hub's check of a leaf does not cover these two: they stay inside the account.
    let leaf = hostile_leaf(deployment, ACME, "oslo").await?;
    for subject in ["_R_.attack.1", FORGED_ACK] {
        leaf.lmsg(subject, None, ATTACK.as_bytes()).await?;
        settle_leaf(&leaf).await?;
    }
    assert_eq!(watchers.leaks(ATTACK).await?, Vec::<String>::new());

    let leaf = hostile_leaf(deployment, ACME, "oslo").await?;
    for pattern in watchers.patterns() {
        leaf.subscribe(&pattern).await?;
        settle_leaf(&leaf).await.map_err(|error| error.context(format!("asked for {pattern}")))?;
    }
    watchers.tell_secrets().await?;
    let own = format!("t.{}.down.oslo.p1.last", watchers.acme_key);
    watchers.core.tap.publish(&own, None, None, b"last").await?;
    leaf.wait_for(LIMIT, |message| message.body == "last").await?;
    let is_own = |subject: &str| subject.starts_with("down.oslo.") || subject.starts_with("_INBOX_oslo.");
    let foreign = subjects_of(leaf.received(), |message| !is_own(&message.subject));
    assert_eq!(foreign, Vec::<String>::new());
    Ok(())
}

/// With every right inside acme-corp: as if the account itself had been taken over.
async fn attack_as_everybody_in_acme(deployment: &TestDeployment, watchers: &Watchers) -> anyhow::Result<()> {
    let identity = deployment.unrestricted_identity(ACME).await?;
    let client = RawClient::connect(&deployment.hub(), &identity).await?;
    ask_as_client(&client, &watchers.patterns()).await?;
    let head = format!("{ATTACK}by everybody");
    say_as_client(&client, &watchers.foreign_subjects(), &head).await?;
    watchers.tell_secrets().await?;
    // The system answers in order, and this to everybody.
    client.publish("$SYS.REQ.USER.INFO", Some("_INBOX_admin.last"), None, b"").await?;
    client.wait_for(LIMIT, |message| message.subject == "_INBOX_admin.last").await?;
    settle_client(&client).await?;
    let answers = client.received().into_iter().filter(|message| message.subject == "_INBOX_admin.attack");
    for answer in answers.map(|message| String::from_utf8_lossy(&message.body).into_owned()) {
        assert!(!answer.contains(&watchers.xyz_key) && !answer.contains(XYZ), "{answer}");
    }
    watchers.acme.catch_up().await?;
    // Said aloud at home, so the attack took place; elsewhere nothing was heard, and nothing was overheard.
    assert!(watchers.acme.heard(|message| begins(message, &head)).len() > 20);
    assert_eq!(watchers.leaks(&head).await?, Vec::<String>::new());
    for other in ["core", XYZ] {
        let secret = format!("{SECRET}of {other}");
        assert_eq!(subjects_of(client.received(), |message| begins(message, &secret)), Vec::<String>::new());
    }
    let own = format!("{SECRET}of {ACME}");
    assert!(!subjects_of(client.received(), |message| begins(message, &own)).is_empty(), "it hears its own account");
    Ok(())
}

/// What would change if somebody had made, emptied or changed a stream or its consumer.
async fn streams(core: &Watch) -> anyhow::Result<Vec<Value>> {
    let mut seen = Vec::new();
    for name in ["RESULTS", "BACKFILL"] {
        let stream = core.ask(&format!("$JS.API.STREAM.INFO.{name}"), b"").await?;
        let consumer = core.ask(&format!("$JS.API.CONSUMER.INFO.{name}.core"), b"").await?;
        for info in [stream, consumer] {
            anyhow::ensure!(info["error"].is_null(), "{info}");
            seen.extend([info["created"].clone(), info["config"].clone()]);
        }
    }
    Ok(seen)
}

#[tokio::test]
async fn what_acme_corp_says_and_asks_for_reaches_nobody_else() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&TENANTS, &[]).await?;
    let witness = deployment.witness().await?;
    let watchers = Watchers::place(&deployment).await?;
    let before = streams(&watchers.core).await?;
    attack_as_person(&deployment, &watchers).await?;
    attack_as_leaf(&deployment, &watchers).await?;
    attack_as_everybody_in_acme(&deployment, &watchers).await?;
    assert_eq!(streams(&watchers.core).await?, before);
    expect_untouched(&deployment, &witness).await?;

    // Control: the same subjects said inside xyz-inc and inside CORE are heard by the same watchers.
    for account in [XYZ, "core"] {
        let identity = deployment.unrestricted_identity(account).await?;
        let insider = RawClient::connect(&deployment.hub(), &identity).await?;
        let head = format!("{ATTACK}from inside {account}");
        let subject = [format!("t.{}.live.lima.p1.results", watchers.xyz_key)];
        say_as_client(&insider, &subject, &head).await?;
        assert_eq!(watchers.leaks(&head).await?, subject);
    }
    Ok(())
}
