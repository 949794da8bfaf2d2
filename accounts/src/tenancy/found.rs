//! Making a platform: operator, system account, roots, settings, and the platform's own accounts.

use time::OffsetDateTime;

use super::{PlatformSettings, Tenancy, TenancyError};
use crate::certificates::{Authority, TrustDomain};
use crate::operator::OperatorStore;
use crate::up::{Layout, Platform, PlatformError};

impl Tenancy {
    /// Makes what is missing of a platform and writes its settings. Keys and roots that are there stay as they are.
    ///
    /// # Errors
    /// When a setting is not valid, or the store, an authority or a file cannot be written.
    pub fn found(layout: Layout, settings: PlatformSettings, now: OffsetDateTime) -> Result<Self, TenancyError> {
        settings.check().map_err(TenancyError::Invalid)?;
        let domain: TrustDomain =
            settings.trust_domain.parse().map_err(|error| TenancyError::Invalid(format!("trust domain: {error}")))?;
        let operator = OperatorStore::open(layout.operator(), now.unix_timestamp()).map_err(TenancyError::Operator)?;
        operator.ensure_system(now.unix_timestamp()).map_err(TenancyError::Operator)?;
        let authority = Authority::new(layout.authority(), domain);
        let roots = authority.ensure_roots(now).map_err(PlatformError::Certificate);
        roots.map_err(TenancyError::Platform)?;
        let hub_urls = settings.hub_urls.clone();
        // The last: without it there is no platform, and the next attempt goes on from what there is.
        settings.write(&layout).map_err(TenancyError::Settings)?;
        Ok(Self::of(Platform { layout, operator, authority, hub_urls, now }, settings))
    }
}
