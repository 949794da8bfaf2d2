//! `bulkhead doctor` against a whole deployment that is healthy, then broken and mended one part after the other.
//!
//! Each break is seen under the name of its look, and a healthy deployment before and after it has no finding.

#[path = "doctor/away.rs"]
mod away;
#[path = "doctor/disk.rs"]
mod disk;
#[path = "doctor/drift.rs"]
mod drift;
#[path = "doctor/files.rs"]
mod files;
#[path = "doctor/healthy.rs"]
mod healthy;
#[path = "doctor/locks.rs"]
mod locks;
#[path = "doctor/patient.rs"]
mod patient;
#[path = "doctor/quorum.rs"]
mod quorum;

use bulkhead_testkit::TestDeployment;

use crate::patient::Patient;

/// One deployment for all of it: starting one is what costs.
#[tokio::test]
async fn what_is_broken_is_found_by_name_and_what_is_well_is_not() -> anyhow::Result<()> {
    let mut patient = Patient::admit().await?;
    healthy::has_no_finding_changes_nothing_and_shows_no_secret(&patient).await?;
    files::modes_certificates_and_credentials(&patient).await?;
    drift::streams_accounts_tenants_and_configuration(&patient).await?;
    locks::row_security_roles_and_grants(&patient).await?;
    locks::a_database_that_forgets(&patient).await?;
    locks::clocks_and_dead_letters(&patient).await?;
    away::leaf_core_database_and_hub(&mut patient).await?;
    disk::a_leaf_on_a_full_disk(&mut patient).await?;
    drift::an_account_that_nobody_knows(&patient).await?;
    away::nothing_runs(patient).await
}

#[tokio::test]
async fn two_of_three_hub_servers_that_are_away_are_one_finding() -> anyhow::Result<()> {
    quorum::two_of_three_are_frozen().await
}

/// A home that an earlier release has made gets the rights that this one needs.
#[tokio::test]
async fn an_older_system_account_is_rendered_anew_at_the_next_start() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    drift::an_older_system_account(deployment).await
}
