//! A hub of three servers: the same results, whichever of its servers dies, and one that is lost for good is replaced.

#[path = "cluster/story.rs"]
mod story;
