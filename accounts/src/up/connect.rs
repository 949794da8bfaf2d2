//! How provisioning and the platform's own services connect to the hub: to SYS and AUTH by credentials, and everywhere else
//! as a gatekeeper lets them in.

use std::path::Path;
use std::time::Duration;

use bulkhead_bus::Role;
use bulkhead_claims::{Claims, UserBody, decode};
use bulkhead_runtime::{Bus, BusSettings, Chain, ConnectError, Credentials, eventually};

use super::platform::{PROVISIONING, Platform, PlatformError, credentials_file, issued_settings};
use crate::certificates::{CertificateFiles, ClientIdentity};
use crate::gate::AUTH;
use crate::hub_size::HubSize;
use crate::operator::SYSTEM;

const PING_LIMIT: Duration = Duration::from_secs(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Credentials of an earlier command are good for this one when they live so much longer.
const FIT_DAYS: i64 = 1;

impl Platform {
    /// Connects to SYS, waiting until every server of the hub is up and knows the others.
    ///
    /// # Errors
    /// When one of them does not answer in time.
    pub async fn connect_hub(&self, hub: HubSize) -> Result<Bus, PlatformError> {
        let system = self.connect_system().await?;
        let all = eventually("every server of the hub", CONNECT_LIMIT, || async {
            let question = bytes::Bytes::from_static(b"{}");
            let answers = system.request_all("$SYS.REQ.SERVER.PING.LEAFZ", question, hub.servers(), PING_LIMIT).await;
            let answered = answers.map_err(|error| error.to_string())?.len();
            if answered == hub.servers() { Ok(()) } else { Err(format!("{answered} of {hub} answered")) }
        });
        all.await.map_err(PlatformError::Apart)?;
        Ok(system)
    }

    /// Connects to SYS, waiting until the hub is up.
    ///
    /// # Errors
    /// When the hub does not admit the system operator in time.
    pub async fn connect_system(&self) -> Result<Bus, PlatformError> {
        self.connect_direct(SYSTEM, Role::SystemOperator, CONNECT_LIMIT).await
    }

    /// Connects to AUTH, to tell the gatekeepers something.
    ///
    /// # Errors
    /// When the hub does not admit us in time.
    pub async fn connect_gate(&self) -> Result<Bus, PlatformError> {
        self.connect_direct(AUTH, Role::GateWriter, CONNECT_LIMIT).await
    }

    /// Connects to an account that is entered by credentials, as soon as the hub is up.
    ///
    /// # Errors
    /// When the hub does not admit us within `limit`.
    pub(crate) async fn connect_direct(
        &self,
        account: &str,
        role: Role,
        limit: Duration,
    ) -> Result<Bus, PlatformError> {
        if let Some(settings) = self.fit_settings(account, role) {
            match Bus::connect(&settings, role.name()).await {
                Ok(bus) => return Ok(bus),
                // The servers know better than this home: what it has is replaced.
                Err(error) if error.is_refused() => {}
                Err(_) => return connect_eventually(&settings, role, limit).await,
            }
        }
        let folder = self.layout.provisioning();
        let settings = self.issue_service(account, role, PROVISIONING, &folder)?;
        connect_eventually(&settings, role, limit).await
    }

    /// What an earlier command was issued to connect to an account, if the next one may go on with it.
    fn fit_settings(&self, account: &str, role: Role) -> Option<BusSettings> {
        let folder = self.layout.provisioning();
        let identity = ClientIdentity::Service { service: PROVISIONING };
        if !self.authority.is_fit(&CertificateFiles::named(&folder, role.name()), &identity, self.now) {
            return None;
        }
        let account = self.operator.account(account).ok().flatten()?;
        let creds_file = credentials_file(&folder, role.name());
        let token = Credentials::read(&creds_file).ok()?.jwt;
        let user: Claims<UserBody> = decode(&token).ok()?;
        let is_fit = Some(user.iss.as_str()) == account.role_key(role)
            && user.exp.is_some_and(|end| end > self.now_s() + FIT_DAYS * 86_400)
            && !account.claims.nats.revocations.contains_key(&user.sub);
        let settings = issued_settings(&folder, role.name(), &self.authority, self.hub_urls.clone());
        is_fit.then_some(BusSettings { creds_file: Some(creds_file), ..settings })
    }

    /// Connects one of the platform's own services as soon as the hub is up and a gatekeeper lets it in.
    ///
    /// # Errors
    /// When that takes too long, or a file cannot be written.
    pub async fn connect_service(
        &self,
        account: &str,
        role: Role,
        service: &'static str,
        folder: &Path,
    ) -> Result<Bus, PlatformError> {
        let settings = self.issue_service(account, role, service, folder)?;
        connect_eventually(&settings, role, CONNECT_LIMIT).await
    }
}

/// Connects as soon as the server is up and admits us. The gatekeeper reads the role from the connection's name.
async fn connect_eventually(settings: &BusSettings, role: Role, limit: Duration) -> Result<Bus, PlatformError> {
    let connected = eventually("a connection to the hub", limit, || async {
        Bus::connect(settings, role.name()).await.map_err(|error: ConnectError| Chain(&error).to_string())
    });
    connected.await.map_err(|source| PlatformError::Admit(role.name(), source))
}
