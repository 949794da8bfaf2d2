//! Permissions by role, derived from the table: allow-lists only, never a bare `>`, a private inbox for each user.
//!
//! The server fills in `{{tag(site)}}`, `{{name()}}` and `{{account-subject()}}` for a scoped signing key. Source of
//! the shapes: facts, topology-proved section 2 (each entry was removed once, and the named function stopped).

use std::collections::BTreeSet;

use crate::gate;
use crate::members;
use crate::name::FORWARDER;
use crate::question::{
    CONNECTED, ClaimsRequest, ServerQuestion, consumer_info, kick, server_connections, server_identity, stored_account,
    stored_message, stream_info, stream_restore, stream_snapshot,
};
use crate::stream::StreamName;
use crate::table::{ASKER_INBOX, Role, SUBJECTS, SubjectRow, Way};
use crate::{PollerName, SiteName};

/// What a user may publish and subscribe. An empty list means deny everything, never the account's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
}

/// Who may use a site's own leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeRole {
    Poller(PollerName),
    /// Pulls from the site's stream and publishes upstream; makes that stream, and can neither purge nor delete it.
    Forwarder,
}

/// Every placeholder becomes `*`.
pub(crate) fn wildcards(pattern: &str) -> String {
    filled(pattern, |_| None)
}

fn filled(pattern: &str, value_of: impl Fn(&str) -> Option<String>) -> String {
    let token = |token: &str| match token.starts_with('<') {
        true => value_of(token).unwrap_or_else(|| "*".to_owned()),
        false => token.to_owned(),
    };
    pattern.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// The placeholders that the server fills in for a role.
fn templated(role: Role, pattern: &str) -> String {
    let is_own = |placeholder: &str| match role {
        Role::Leaf => placeholder == "<site>",
        Role::Poller => ["<site>", "<poller>", "<name>"].contains(&placeholder),
        Role::Admin | Role::Viewer | Role::PlatformAdmin => placeholder == "<user>",
        Role::CoreStream
        | Role::CoreRpc
        | Role::CoreLive
        | Role::DispatchPush
        | Role::DispatchRpc
        | Role::RegistryRpc
        | Role::RegistryKeep
        | Role::Provisioner
        | Role::Backup
        | Role::SystemOperator
        | Role::Gatekeeper
        | Role::GateWriter
        | Role::GateWatch
        | Role::Sentinel => false,
    };
    filled(pattern, |placeholder| match placeholder {
        "<site>" if is_own(placeholder) => Some("{{tag(site)}}".to_owned()),
        "<poller>" | "<user>" | "<name>" if is_own(placeholder) => Some("{{name()}}".to_owned()),
        "<T>" if role == Role::Leaf => Some("{{account-subject()}}".to_owned()),
        _ => None,
    })
}

/// What a consumer's puller needs, async-nats included (facts: topology-proved, item 6). It may also read a message by its
/// place, for one whose headers no client can be handed, and make the consumer anew, so that what is stranded in the queue
/// is handed out again. None of these rights can take an unacknowledged message away.
fn pull_rights(name: StreamName) -> [String; 7] {
    let (stream, consumer) = (name.as_str(), name.consumer().name);
    [
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
        consumer_info(name),
        format!("$JS.ACK.{stream}.{consumer}.>"),
        stored_message(name),
        stream_info(name),
        format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}"),
        format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}"),
    ]
}

/// What is needed to make a stream and its consumer, and nothing that reads, purges or deletes.
fn provision_rights(name: StreamName) -> [String; 5] {
    let (stream, consumer) = (name.as_str(), name.consumer().name);
    [
        format!("$JS.API.STREAM.CREATE.{stream}"),
        format!("$JS.API.STREAM.UPDATE.{stream}"),
        stream_info(name),
        format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}"),
        consumer_info(name),
    ]
}

/// What is needed to take a snapshot of a stream and to restore one that is not there. It reads everything that waits in
/// the stream, and can neither change nor remove what is there.
fn backup_rights(name: StreamName) -> [String; 4] {
    let stream = name.as_str();
    [
        stream_snapshot(name),
        format!("$JS.SNAPSHOT.ACK.{stream}.>"),
        stream_restore(name),
        format!("$JS.SNAPSHOT.RESTORE.{stream}.>"),
    ]
}

/// Answers servers and nobody else, reads the bucket by consumers of its own, and adds to the decisions. It can neither
/// change what it knows nor take back what it said.
fn add_gatekeeper(permissions: &mut Permissions) {
    let stream = gate::gate_stream();
    // Without its queue: servers drop an entry with a queue from a list with a template, and say nothing (measured).
    permissions.subscribe.push(gate::CALLOUT.to_owned());
    permissions.subscribe.push(gate::probe_subject("{{name()}}"));
    permissions.subscribe.extend([gate::SAID_RECORDS, gate::RECORDS, gate::BARRED].map(str::to_owned));
    permissions.publish.extend([
        "_R_.>".to_owned(),
        gate::probe_subject("{{name()}}"),
        gate::decision_subject("{{name()}}"),
        gate::record_subject("{{name()}}"),
        gate::barred_subject("{{name()}}"),
        format!("$JS.API.STREAM.INFO.{stream}"),
    ]);
    permissions.publish.extend(watch_rights(&stream));
}

/// What is needed to read all that is in a bucket, by consumers of one's own.
fn watch_rights(stream: &str) -> [String; 5] {
    [
        format!("$JS.API.CONSUMER.CREATE.{stream}"),
        format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
        format!("$JS.API.CONSUMER.INFO.{stream}.*"),
        format!("$JS.API.CONSUMER.DELETE.{stream}.*"),
        format!("$JS.FC.{stream}.>"),
    ]
}

/// Makes bucket and stream, also for another number of servers, writes records and reads them. It can neither purge nor
/// delete, and does not see what was decided.
fn gate_writer_rights() -> Vec<String> {
    let (bucket, stream) = (gate::GATE_BUCKET, gate::gate_stream());
    let makes = |stream: &str| ["CREATE", "UPDATE", "INFO"].map(|act| format!("$JS.API.STREAM.{act}.{stream}"));
    let mut rights: Vec<String> = [makes(&stream), makes(gate::DECISIONS)].concat();
    // The library looks at the account before it makes a bucket.
    let account = "$JS.API.INFO".to_owned();
    rights.extend([account, format!("$KV.{bucket}.>"), format!("$JS.API.DIRECT.GET.{stream}.>")]);
    // What it decides about devices that enrol.
    rights.push(gate::decision_subject(gate::ENROLMENT_DESK));
    // Not even of the gatekeepers' consumers: what it makes goes by itself.
    rights.extend(watch_rights(&stream).into_iter().filter(|right| !right.contains("DELETE")));
    rights
}

/// The inbox prefix of a role, as a template; `None` where nothing is ever requested.
fn inbox(role: Role) -> Option<&'static str> {
    match role {
        Role::Leaf => Some("_INBOX_{{tag(site)}}.>"),
        Role::Poller => Some("_INBOX_{{tag(site)}}.{{name()}}.>"),
        Role::Admin
        | Role::Viewer
        | Role::PlatformAdmin
        | Role::CoreStream
        | Role::DispatchPush
        | Role::RegistryKeep
        | Role::Provisioner
        | Role::Backup
        | Role::SystemOperator
        | Role::Gatekeeper
        | Role::GateWriter
        | Role::GateWatch => Some("_INBOX_{{name()}}.>"),
        Role::CoreRpc | Role::CoreLive | Role::DispatchRpc | Role::RegistryRpc | Role::Sentinel => None,
    }
}

fn add_row(role: Role, row: &SubjectRow, permissions: &mut Permissions) {
    let is_leaf_carried = role == Role::Leaf && row.via_leaf;
    let sends = row.from.contains(&role);
    let receives = row.to.contains(&role);
    let in_core = row.core_pattern();
    match row.way {
        // A poller without a leaf is its own forwarder only once it may be: it has no row yet.
        Way::Durable(stream) => {
            if sends || is_leaf_carried {
                permissions.publish.push(templated(role, row.pattern));
            }
            if receives {
                permissions.publish.extend(pull_rights(stream));
                permissions.publish.push(stream_info(stream));
            }
        }
        Way::Request => {
            if sends || is_leaf_carried {
                permissions.publish.push(templated(role, row.pattern));
            }
            if receives {
                permissions.subscribe.extend(in_core.map(|pattern| templated(role, &asked_of(&pattern))));
                permissions.publish.push("_R_.>".to_owned());
            }
        }
        Way::Service => {
            if sends {
                permissions.publish.extend(in_core.map(|pattern| templated(role, &pattern)));
            } else if receives {
                permissions.subscribe.extend(in_core.map(|pattern| templated(role, &pattern)));
                permissions.publish.push(format!("{ASKER_INBOX}.>"));
            }
        }
        Way::Event => {
            if sends {
                permissions.publish.extend(in_core.map(|pattern| templated(role, &pattern)));
            } else if receives {
                permissions.subscribe.extend(in_core.map(|pattern| templated(role, &pattern)));
            }
        }
        Way::Live => {
            if is_leaf_carried {
                // The hub matches the reader's `live.*.*.*` against this list before it asks the leaf for messages, and
                // no entry that ends in `*` matches a `*`: only `>` does (measured with a real leaf, 0 and 30 of 30).
                let head = row.pattern.split_once(".<poller>").map_or(row.pattern, |(head, _)| head);
                permissions.publish.push(format!("{}.>", templated(role, head)));
            } else if sends {
                permissions.publish.push(templated(role, row.pattern));
            }
            if receives {
                permissions.subscribe.extend(in_core.map(|pattern| templated(role, &pattern)));
            }
        }
        Way::WakeUp => {
            if sends {
                permissions.publish.extend(in_core.map(|pattern| templated(role, &pattern)));
            } else if is_leaf_carried {
                // The hub checks the exporter's subject at delivery to a leaf (facts: topology-proved, item 2).
                permissions.subscribe.push(templated(role, row.pattern));
                permissions.subscribe.extend(in_core.map(|pattern| templated(role, &pattern)));
            } else if receives {
                permissions.subscribe.push(templated(role, row.pattern));
            }
        }
        Way::Edge(_) => {}
    }
}

/// What a service that answers listens to for a request: everything that may ask it, people and pollers alike, in one
/// subscription, because two that overlap would be handed the same request twice.
fn asked_of(pattern: &str) -> String {
    match pattern.rsplit_once('.') {
        Some((head, verb)) if !verb.starts_with('<') => {
            let service = head.rsplit('.').next().unwrap_or_default();
            format!("t.<T>.up.<site>.<name>.rpc.{service}.<verb>")
        }
        Some(_) | None => pattern.to_owned(),
    }
}

/// Reads and writes the buckets of members, and can neither purge nor delete them.
fn keep_rights() -> Vec<String> {
    let of_bucket = |bucket: &str| {
        let stream = format!("KV_{bucket}");
        let mut rights = vec![
            format!("$KV.{bucket}.>"),
            format!("$JS.API.STREAM.INFO.{stream}"),
            format!("$JS.API.STREAM.MSG.GET.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}.>"),
        ];
        rights.extend(watch_rights(&stream));
        rights
    };
    members::BUCKETS.into_iter().flat_map(of_bucket).collect()
}

/// What is needed to make the buckets of members, also for another number of servers.
fn bucket_rights() -> Vec<String> {
    let makes = |bucket| ["CREATE", "UPDATE", "INFO"].map(|act| format!("$JS.API.STREAM.{act}.KV_{bucket}"));
    let mut rights: Vec<String> = members::BUCKETS.into_iter().flat_map(makes).collect();
    // The library looks at the account before it makes a bucket.
    rights.push("$JS.API.INFO".to_owned());
    rights
}

/// Who says and hears a subject by several rows has it once.
fn once(subjects: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    subjects.retain(|subject| seen.insert(subject.clone()));
}

/// What the scoped signing key of `role` grants, as a template.
#[must_use]
pub fn role_permissions(role: Role) -> Permissions {
    let mut permissions = Permissions::default();
    for row in SUBJECTS {
        add_row(role, row, &mut permissions);
    }
    match role {
        Role::Provisioner => {
            permissions.publish.extend(StreamName::HUB.into_iter().flat_map(provision_rights));
            permissions.publish.extend(bucket_rights());
        }
        Role::RegistryKeep => permissions.publish.extend(keep_rights()),
        Role::RegistryRpc | Role::DispatchRpc => {
            once(&mut permissions.publish);
            once(&mut permissions.subscribe);
        }
        Role::Backup => permissions.publish.extend(StreamName::HUB.into_iter().flat_map(backup_rights)),
        Role::SystemOperator => {
            permissions.publish.extend(ClaimsRequest::ALL.map(|request| request.subject().to_owned()));
            permissions.publish.extend([stored_account("*"), kick("*")]);
            // Each by its name: below SERVER.PING are also memory profiles and what every connection subscribes.
            permissions.publish.extend(ServerQuestion::ALL.map(|question| question.subject().to_owned()));
        }
        Role::Gatekeeper => add_gatekeeper(&mut permissions),
        Role::GateWriter => {
            permissions.publish.extend(gate_writer_rights());
            permissions.subscribe.push(gate::BARRED.to_owned());
        }
        Role::GateWatch => {
            let connections = ServerQuestion::Connections.subject().to_owned();
            permissions.publish.extend([server_identity("*"), server_connections("*"), connections, kick("*")]);
            permissions.subscribe.push(CONNECTED.to_owned());
        }
        Role::Leaf
        | Role::Poller
        | Role::Admin
        | Role::Viewer
        | Role::PlatformAdmin
        | Role::CoreStream
        | Role::CoreRpc
        | Role::CoreLive
        | Role::DispatchPush
        | Role::Sentinel => {}
    }
    permissions.subscribe.extend(inbox(role).map(str::to_owned));
    permissions
}

/// What a local user of `site`'s leaf may do, with every name filled in.
#[must_use]
pub fn edge_permissions(site: &SiteName, role: &EdgeRole) -> Permissions {
    let mut permissions = Permissions::default();
    match role {
        EdgeRole::Poller(poller) => {
            let own = |pattern: &str| {
                filled(pattern, |placeholder| match placeholder {
                    "<site>" => Some(site.to_string()),
                    "<poller>" | "<name>" => Some(poller.to_string()),
                    _ => None,
                })
            };
            for row in SUBJECTS {
                match row.way {
                    Way::Edge(StreamName::ResultsEdge) | Way::Live => permissions.publish.push(own(row.pattern)),
                    Way::WakeUp => permissions.subscribe.push(own(row.pattern)),
                    Way::Request if row.via_leaf => permissions.publish.push(own(row.pattern)),
                    Way::Edge(_) | Way::Durable(_) | Way::Request | Way::Service | Way::Event => {}
                }
            }
            permissions.subscribe.push(format!("_INBOX_{site}.{poller}.>"));
        }
        EdgeRole::Forwarder => {
            for row in SUBJECTS {
                match row.way {
                    Way::Edge(stream) => {
                        permissions.publish.extend(pull_rights(stream));
                        permissions.publish.extend(provision_rights(stream));
                        // What the pollers write it takes; what it sets aside it writes.
                        if stream == StreamName::BackfillEdge {
                            permissions.publish.push(wildcards(row.pattern));
                        }
                    }
                    Way::Durable(_) => permissions.publish.push(filled(row.pattern, |_| Some(site.to_string()))),
                    // It speaks for the leaf link.
                    Way::Request if row.via_leaf && row.pattern.contains("<name>") => {
                        permissions.publish.push(filled(row.pattern, |placeholder| match placeholder {
                            "<site>" => Some(site.to_string()),
                            _ => Some(FORWARDER.to_owned()),
                        }));
                    }
                    Way::Request | Way::Live | Way::WakeUp | Way::Service | Way::Event => {}
                }
            }
            // Who pulls from a stream and makes it has some rights twice.
            once(&mut permissions.publish);
            permissions.subscribe.push(format!("_INBOX_{site}.fwd.>"));
        }
    }
    permissions
}

#[cfg(test)]
mod tests;
