//! The certificate decides which account a connection enters, and nothing that is said beside it.

#[path = "identity/bypass.rs"]
mod bypass;
#[path = "identity/detective.rs"]
mod detective;
#[path = "identity/entering.rs"]
mod entering;
#[path = "identity/hub.rs"]
mod hub;
#[path = "identity/lax.rs"]
mod lax;
#[path = "identity/look.rs"]
mod look;
#[path = "identity/storm.rs"]
mod storm;
#[path = "identity/tricks.rs"]
mod tricks;
#[path = "identity/withdrawing.rs"]
mod withdrawing;
