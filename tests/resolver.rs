//! What is said to real hub servers about accounts, and what they make of it: alone and as three, while one is away.

#[path = "resolver/away.rs"]
mod away;
#[path = "resolver/closing.rs"]
mod closing;
#[path = "resolver/ground.rs"]
mod ground;
#[path = "resolver/looking.rs"]
mod looking;
#[path = "resolver/many.rs"]
mod many;
#[path = "resolver/pushing.rs"]
mod pushing;

use bulkhead_accounts::hub_size::HubSize;

use crate::ground::Ground;

#[tokio::test]
async fn one_server_tells_what_it_took_and_what_it_closes() -> anyhow::Result<()> {
    let ground = Ground::start(HubSize::One).await?;
    pushing::what_is_pushed_is_in_force_and_admits_its_users(&ground).await?;
    pushing::what_somebody_else_changed_is_not_overwritten(&ground).await?;
    pushing::of_two_at_once_at_most_one_is_told_that_it_won(&ground).await?;
    pushing::what_a_server_refuses_is_readable(&ground).await?;
    pushing::a_server_that_says_yes_and_does_not_apply_is_not_believed(&ground).await?;
    looking::layers_are_compared_and_foreign_accounts_named(&ground).await?;
    closing::what_is_predicted_is_what_is_closed(&ground).await?;
    closing::one_connection_is_closed_and_a_key_is_drained(&ground).await?;
    many::accounts_are_proved_each(&ground).await
}

#[tokio::test]
async fn three_servers_of_which_one_is_away() -> anyhow::Result<()> {
    let mut ground = Ground::start(HubSize::Three).await?;
    pushing::what_is_pushed_is_in_force_and_admits_its_users(&ground).await?;
    closing::too_many_over_three_servers(&ground).await?;
    away::a_suspension_reaches_who_was_away(&mut ground).await?;
    away::a_deletion_is_undone_by_who_was_away_and_is_done_again(&mut ground).await?;
    away::a_deleted_account_comes_back_only_signed_anew_and_with_its_streams(&mut ground).await?;
    many::accounts_are_proved_each(&ground).await?;
    many::who_is_away_is_named_for_each(&mut ground).await
}
