//! `bulkhead enrolment-desk`: answers the devices that enrol, and revokes what gatekeepers have barred, where `bulkhead up` does
//! not do it.

use std::net::SocketAddr;
use std::path::Path;

use bulkhead_runtime::{LogFormat, Stop, init_logs, stop_on_signals};
use clap::Args;

use super::exit::Failure;
use crate::enrolment::Desk;

pub(super) const HELP: &str = "Example:\n  bulkhead enrolment-desk --listen 0.0.0.0:8443\n\nDevices reach it at the enrolment_urls of platform.toml, over TLS. It holds this home with all its authorities: run it on\nthe machine of the home, and let nothing else of that machine be reached. Without it nobody enrols, and what\ngatekeepers bar is not revoked for good; all else goes on.";

#[derive(Debug, Args)]
pub(super) struct EnrolmentDeskArgs {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// How log lines are written.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormatArg,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum LogFormatArg {
    #[default]
    Text,
    Json,
}

impl From<LogFormatArg> for LogFormat {
    fn from(format: LogFormatArg) -> Self {
        match format {
            LogFormatArg::Text => Self::Text,
            LogFormatArg::Json => Self::Json,
        }
    }
}

pub(super) async fn run(home: &Path, args: &EnrolmentDeskArgs) -> Result<(), Failure> {
    init_logs(args.log_format.into(), "info").map_err(|error| Failure::failed(std::io::Error::other(error)))?;
    let stop = Stop::new();
    let signals = tokio::spawn(stop_on_signals(stop.clone()));
    let served = Desk::serve(home.to_owned(), args.listen, stop).await;
    signals.abort();
    served.map_err(Failure::failed)
}
