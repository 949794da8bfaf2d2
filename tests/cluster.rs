//! A hub of three servers: the same results, whichever of its servers dies, and one that is lost for good is replaced.
//! Accounts, their limits and who may join the hub hold on all three.

#[path = "cluster/alone.rs"]
mod alone;
#[path = "cluster/asking.rs"]
mod asking;
#[path = "cluster/doors.rs"]
mod doors;
#[path = "cluster/limits.rs"]
mod limits;
#[path = "cluster/resize.rs"]
mod resize;
#[path = "cluster/story.rs"]
mod story;
