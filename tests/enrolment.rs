//! Machines that make their own keys and come for certificates with a token that is good once: what they get, and who gets
//! nothing. Every answer is among the decisions within seconds.

#[path = "enrolment/barred.rs"]
mod barred;
#[path = "enrolment/device.rs"]
mod device;
#[path = "enrolment/proxy.rs"]
mod proxy;
#[path = "enrolment/refused.rs"]
mod refused;
#[path = "enrolment/renewal.rs"]
mod renewal;
#[path = "enrolment/story.rs"]
mod story;
#[path = "enrolment/watchdog.rs"]
mod watchdog;
