//! `bulkhead completions` and `bulkhead man`: what a shell and a manual know about these commands.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use super::Cli;
use super::desk::say;
use super::exit::Failure;
use crate::files::make_folder;

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder that gets a page for each command [default: the first page, on standard output].
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Prints the script with which a shell completes our commands.
pub(super) fn print_completions(shell: Shell, is_json: bool) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bulkhead", &mut script);
    let script = String::from_utf8_lossy(&script);
    say(is_json, script.trim_end(), &json!({"shell": shell.to_string(), "script": script}))
}

pub(super) fn write_manual(args: &ManArgs, is_json: bool) -> Result<(), Failure> {
    let Some(folder) = &args.to else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(Failure::failed)?;
        let page = String::from_utf8_lossy(&page);
        return say(is_json, page.trim_end(), &json!({"page": page}));
    };
    make_folder(folder).map_err(Failure::failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(Failure::failed)?;
    let text = format!("the pages are in {0}: read them with `man -l {0}/bulkhead.1`", folder.display());
    say(is_json, &text, &json!({"folder": folder}))
}
