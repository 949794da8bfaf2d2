//! One server of three is left: nothing is kept any more, and whoever is put out is out all the same.

use anyhow::Context;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_bus::gate::gate_stream;
use bulkhead_bus::question::ServerQuestion;
use bulkhead_runtime::eventually;
use bulkhead_testkit::deployment::LIMIT;
use bulkhead_testkit::{RawClient, TestDeployment};
use bulkhead_tests::operator::Operator;
use serde_json::{Value, json};

const TENANTS: [&str; 2] = ["acme-corp enterprise oslo/p1", "xyz-inc free lima/p1"];
const REVOKE: [&str; 4] = ["tenant", "user", "revoke", "xyz-inc"];

/// The server that leads the gatekeepers' bucket.
async fn bucket_leader(deployment: &TestDeployment) -> anyhow::Result<String> {
    let found = eventually("a leader of the bucket", LIMIT, || async {
        let question = json!({"accounts": true, "streams": true}).to_string();
        let subject = ServerQuestion::JetStream.subject();
        let answers = deployment.up.system.request_all(subject, question.into(), 3, LIMIT).await;
        for answer in answers.map_err(|error| error.to_string())? {
            let said: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
            let accounts = said["data"]["account_details"].as_array().into_iter().flatten();
            let mut streams = accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
            let leader =
                streams.find(|stream| stream["name"] == gate_stream()).map(|stream| &stream["cluster"]["leader"]);
            if let Some(leader) = leader.and_then(Value::as_str) {
                return Ok(leader.to_owned());
            }
        }
        Err("none".to_owned())
    });
    Ok(found.await?)
}

async fn enter_at(deployment: &TestDeployment, server: usize, person: &str) -> anyhow::Result<RawClient> {
    let identity = deployment.person_identity(person)?;
    let client = RawClient::connect(&deployment.hub_servers()[server], &identity).await?;
    client.flush().await?;
    Ok(client)
}

#[tokio::test]
async fn a_person_is_put_out_without_a_quorum_and_stays_out() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start_cluster(&TENANTS).await?;
    // Whoever leads the bucket might keep what it cannot store yet; here it dies.
    let leader = bucket_leader(&deployment).await?;
    let alone = (1..=3).find(|number| HubSize::server_name(*number) != leader).context("two do not lead")?;
    let others: Vec<usize> = (1..=3).filter(|number| *number != alone).collect();
    let enter = async |deployment: &TestDeployment, person: &str| enter_at(deployment, alone - 1, person).await;
    let (admin, other) = (enter(&deployment, "xyz-inc-admin").await?, enter(&deployment, "acme-corp-admin").await?);
    for &number in &others {
        deployment.hub_server(number)?.child.kill()?;
    }
    let revoke = [&REVOKE[..], &["admin"]].concat();
    let (_, said) = Operator { home: deployment.home() }.expect(5, &revoke).await?;
    anyhow::ensure!(said.contains("nobody is in xyz-inc who is let in no more, where servers are"), "{said}");
    admin.wait_closed(LIMIT).await.context("a person who was put out")?;
    anyhow::ensure!(enter(&deployment, "xyz-inc-admin").await.is_err(), "whoever was put out is in again");
    // Control: nobody else is concerned.
    other.flush().await.context("another tenant's person")?;
    enter(&deployment, "acme-corp-admin").await.context("the same person once more")?;
    for number in others {
        deployment.up.restart_hub_server(number)?;
    }
    deployment.up.wait_until_replicas_current().await.context("wait for the servers that came back")?;
    // Their gatekeepers were cut off from it, and hear of it before anybody pushes anything.
    let settled = eventually("refusals only, by all servers", LIMIT, || async {
        for _ in 0..4 {
            for server in 0..3 {
                if enter_at(&deployment, server, "xyz-inc-admin").await.is_ok() {
                    return Err("whoever was put out is in again");
                }
            }
        }
        Ok(())
    });
    settled.await?;
    for server in 0..3 {
        enter_at(&deployment, server, "acme-corp-admin").await.context("control: another tenant's person")?;
    }
    let (_, said) = Operator { home: deployment.home() }.expect(0, &["push"]).await?;
    anyhow::ensure!(said.contains("revoke-person of xyz-inc/admin was begun"), "{said}");
    let (_, said) = Operator { home: deployment.home() }.expect(0, &["tenant", "list"]).await?;
    anyhow::ensure!(said.is_empty(), "it is not done: {said}");
    anyhow::ensure!(enter(&deployment, "xyz-inc-admin").await.is_err(), "the push let somebody in");
    deployment.stop().await
}
