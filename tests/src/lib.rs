//! Whole flows against real servers; each file beside this folder is one story.
//!
//! [`chaos`] breaks a deployment on purpose while results flow, and adds up the books afterwards.

pub mod bench;
pub mod chaos;
pub mod machine;
pub mod mounting;
pub mod operator;
pub mod operator_server;
pub mod shared_checks;
pub mod slots;
pub mod streams;
