//! What is wrong is refused with an error that names the value, the rule and the way out, and nothing is lost by it.
//!
//! Names, settings, messages, files of a stopped deployment, servers that are too old, and a database that lacks
//! something.

#[path = "bad_input/bodies.rs"]
mod bodies;
#[path = "bad_input/files.rs"]
mod files;
#[path = "bad_input/messages.rs"]
mod messages;
#[path = "bad_input/misconfigured.rs"]
mod misconfigured;
#[path = "bad_input/names.rs"]
mod names;
#[path = "bad_input/poison.rs"]
mod poison;
#[path = "bad_input/programs.rs"]
mod programs;
#[path = "bad_input/settings.rs"]
mod settings;

#[path = "bad_input/program.rs"]
mod program;

use bulkhead_tests::slots::Slots;

/// Checks that only tests send results of have names that begin so.
const FORGED: &str = "raw-";
/// Slots of what pollers measure.
const HONEST: Slots = Slots { without: FORGED, ..Slots::ALL };
