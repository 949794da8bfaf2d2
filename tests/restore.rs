//! A platform is lost with its hub, core and database, and comes back from a backup while its sites go on.

#[path = "restore/books.rs"]
mod books;
#[path = "restore/cluster.rs"]
mod cluster;
#[path = "restore/damage.rs"]
mod damage;
#[path = "restore/story.rs"]
mod story;
