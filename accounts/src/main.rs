//! The `bulkhead` command.

use std::process::ExitCode;

// One thread: the children of `up` are tied to the thread that starts them.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    bulkhead_accounts::cli::run().await
}
