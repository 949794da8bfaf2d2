//! What operators do by commands beside a platform that runs, when something is wrong: with what servers hold, with tokens,
//! with seeds, with the disk, and with a second operator. Nothing is lost, and what is wrong is named with the way out.

#[path = "commands/differences.rs"]
mod differences;
#[path = "commands/disk.rs"]
mod disk;
#[path = "commands/seeds.rs"]
mod seeds;
#[path = "commands/together.rs"]
mod together;
#[path = "commands/tokens.rs"]
mod tokens;

use bulkhead_testkit::TestDeployment;
use bulkhead_tests::operator::Operator;

/// Every account of a trial but those of tenants.
const PLATFORM: [&str; 4] = ["core", "intake-1", "ops", "sys"];

/// Everything is in force and nothing has to be sent: whatever was wrong before has reached no server.
async fn nothing_is_to_be_done(operator: &Operator<'_>) -> anyhow::Result<()> {
    operator.expect(0, &["validate"]).await?;
    operator.expect(0, &["nsc", "check"]).await?;
    operator.expect(0, &["diff"]).await?;
    let (pushed, _) = operator.expect(0, &["push"]).await?;
    anyhow::ensure!(pushed[0]["unchanged"] == pushed[0]["in_force"] && pushed[0]["in_force"] != 0, "{pushed:?}");
    let open = std::fs::read_dir(operator.home.join("journal/open")).into_iter().flatten().count();
    anyhow::ensure!(open == 0, "{open} acts are open");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_named_and_nothing_is_lost() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let operator = Operator { home: deployment.home() };
    nothing_is_to_be_done(&operator).await?;
    differences::every_account_is_compared_with_what_it_is_rendered_to(&operator, &deployment).await?;
    differences::a_tenant_whose_live_import_is_missing_is_named(&operator).await?;
    differences::an_account_that_is_gone_from_the_servers_is_named(&operator, &deployment).await?;
    differences::the_systems_account_is_pushed_over_its_own_connection(&operator, &deployment).await?;
    tokens::bad_tokens_are_named_and_reach_no_server(&operator, &deployment).await?;
    tokens::a_token_from_the_future_is_named_and_overtaken(&operator, &deployment).await?;
    seeds::seeds_of_the_wrong_kind_or_mode_sign_nothing(&operator, &deployment).await?;
    together::a_push_waits_for_whoever_places_live_streams(&operator).await?;
    together::operators_at_once_wait_for_each_other(&operator).await?;
    disk::a_full_disk_in_the_middle_of_an_onboarding(&operator).await?;
    nothing_is_to_be_done(&operator).await?;
    deployment.stop().await
}
