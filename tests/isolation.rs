//! What acme-corp can do to xyz-inc, to the platform and between its own sites, with all it holds and more: nothing.
//!
//! Nobody waits for silence: behind every attack comes a marker that the same watcher must hear, and each check is also
//! run where it must fail (an unrestricted user, a weakened account).

#[path = "isolation/batch.rs"]
mod batch;
#[path = "isolation/bodies.rs"]
mod bodies;
#[path = "isolation/credentials.rs"]
mod credentials;
#[path = "isolation/prefix.rs"]
mod prefix;
#[path = "isolation/replies.rs"]
mod replies;
#[path = "isolation/sites.rs"]
mod sites;
#[path = "isolation/subjects.rs"]
mod subjects;
#[path = "isolation/watch.rs"]
mod watch;
