//! No certificate but one of the route root joins the hub, at whichever of its servers.

use bulkhead_accounts::certificates::CertificateFiles;
use bulkhead_testkit::{Identity, RouteOutcome, TestDeployment, try_route};

/// A server of the hub, as another one knows it.
fn server_identity(deployment: &TestDeployment, number: usize, name: &str) -> Identity {
    let files = CertificateFiles::named(&deployment.up.layout.hub_server(number), name);
    let nobody = Identity::trusting(deployment.up.platform.authority.server_root_file());
    nobody.with_certificate(files.cert_file, files.key_file)
}

/// Tenants, people, services and a hub server's own listener certificate are refused in the TLS handshake.
pub(crate) async fn only_a_server_of_the_hub_joins_it(deployment: &TestDeployment) -> anyhow::Result<()> {
    let routes = deployment.hub_routes();
    assert_eq!(routes.len(), 3);
    let nobody = Identity::trusting(deployment.up.platform.authority.server_root_file());
    for (index, &route) in routes.iter().enumerate() {
        let strangers = [
            ("nobody", nobody.clone()),
            ("a leaf", deployment.leaf_identity("acme-corp", "oslo")?),
            ("a tenant's person", deployment.person_identity("acme-corp-admin")?),
            ("a person of the platform", deployment.person_identity("ops")?),
            ("the listener of a hub server", server_identity(deployment, 2, "hub")),
        ];
        for (who, identity) in strangers {
            let outcome = try_route(route, &identity).await?;
            assert!(matches!(outcome, RouteOutcome::RefusedTls(_)), "{who} at server {index}: {outcome:?}");
        }
        // Control: the same attempt with a certificate of the route root joins.
        let outcome = try_route(route, &server_identity(deployment, 2, "route")).await?;
        assert_eq!(outcome, RouteOutcome::Accepted, "a hub server at server {index}");
    }
    Ok(())
}
