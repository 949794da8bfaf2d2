//! Poller-dispatch.
pub mod plan;
