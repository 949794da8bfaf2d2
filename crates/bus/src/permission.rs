//! Permissions by role, derived from the table: allow-lists only, never a bare `>`, a private inbox for each user.
//!
//! The server fills in `{{tag(site)}}`, `{{name()}}` and `{{account-subject()}}` for a scoped signing key. Source of
//! the shapes: facts, topology-proved section 2 (each entry was removed once, and the named function stopped).

use std::collections::BTreeSet;

use crate::gate;
use crate::question::{
    CONNECTED, ClaimsRequest, ServerQuestion, consumer_info, kick, server_connections, server_identity, stored_account,
    stored_message, stream_info, stream_restore, stream_snapshot,
};
use crate::stream::StreamName;
use crate::table::{Role, SUBJECTS, SubjectRow, Way};
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
        Role::Poller => placeholder == "<site>" || placeholder == "<poller>",
        Role::Admin | Role::Viewer | Role::PlatformAdmin => placeholder == "<user>",
        Role::CoreStream
        | Role::CoreRpc
        | Role::CoreLive
        | Role::DispatchPush
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
        "<poller>" | "<user>" if is_own(placeholder) => Some("{{name()}}".to_owned()),
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
        | Role::Provisioner
        | Role::Backup
        | Role::SystemOperator
        | Role::Gatekeeper
        | Role::GateWriter
        | Role::GateWatch => Some("_INBOX_{{name()}}.>"),
        Role::CoreRpc | Role::CoreLive | Role::DispatchPush | Role::Sentinel => None,
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
                permissions.subscribe.extend(in_core.map(|pattern| templated(role, &pattern)));
                permissions.publish.push("_R_.>".to_owned());
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

/// What the scoped signing key of `role` grants, as a template.
#[must_use]
pub fn role_permissions(role: Role) -> Permissions {
    let mut permissions = Permissions::default();
    for row in SUBJECTS {
        add_row(role, row, &mut permissions);
    }
    match role {
        Role::Provisioner => permissions.publish.extend(StreamName::HUB.into_iter().flat_map(provision_rights)),
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
                    "<poller>" => Some(poller.to_string()),
                    _ => None,
                })
            };
            for row in SUBJECTS {
                match row.way {
                    Way::Edge(StreamName::ResultsEdge) | Way::Live => permissions.publish.push(own(row.pattern)),
                    Way::WakeUp => permissions.subscribe.push(own(row.pattern)),
                    Way::Edge(_) | Way::Durable(_) | Way::Request => {}
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
                    Way::Request | Way::Live | Way::WakeUp => {}
                }
            }
            // Who pulls from a stream and makes it has some rights twice.
            let mut seen = BTreeSet::new();
            permissions.publish.retain(|subject| seen.insert(subject.clone()));
            permissions.subscribe.push(format!("_INBOX_{site}.fwd.>"));
        }
    }
    permissions
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 16] = Role::ALL;

    #[test]
    fn nobody_has_everything() {
        for role in ROLES {
            let permissions = role_permissions(role);
            for subject in permissions.publish.iter().chain(&permissions.subscribe) {
                assert!(subject != ">" && subject != "*" && !subject.starts_with("*."), "{role:?}: {subject}");
                assert!(!subject.starts_with("_INBOX."), "{role:?} has the shared inbox");
                assert!(!subject.contains('<'), "{role:?}: {subject} has an open placeholder");
            }
        }
    }

    #[test]
    fn no_list_with_a_template_names_a_queue() {
        for role in ROLES {
            let Permissions { publish, subscribe } = role_permissions(role);
            for list in [publish, subscribe] {
                let has_template = list.iter().any(|subject| subject.contains("{{"));
                assert!(!has_template || list.iter().all(|subject| !subject.contains(' ')), "{role:?}: {list:?}");
            }
        }
    }

    #[test]
    fn only_the_pulling_role_can_acknowledge() {
        for role in ROLES {
            let acks = role_permissions(role).publish.iter().any(|subject| subject.starts_with("$JS.ACK"));
            assert_eq!(acks, role == Role::CoreStream, "{role:?}");
        }
        assert_eq!(role_permissions(Role::CoreRpc).publish, ["_R_.>"]);
    }

    #[test]
    fn only_the_system_operator_changes_accounts_and_it_stops_no_server() {
        for role in ROLES {
            let changes = role_permissions(role).publish.iter().any(|subject| {
                let last = subject.rsplit('.').next().unwrap_or_default();
                subject.starts_with("$SYS.") && ["UPDATE", "DELETE"].contains(&last)
            });
            assert_eq!(changes, role == Role::SystemOperator, "{role:?}");
            let closes = role_permissions(role).publish.iter().any(|subject| subject.ends_with(".KICK"));
            assert_eq!(closes, matches!(role, Role::SystemOperator | Role::GateWatch), "{role:?}");
        }
        let system = role_permissions(Role::SystemOperator).publish;
        assert!(system.iter().all(|subject| !subject.ends_with(".RELOAD") && !subject.ends_with(".>")), "{system:?}");
    }

    #[test]
    fn only_who_pulls_or_provisions_sees_how_much_waits() {
        for role in ROLES {
            let publish = role_permissions(role).publish;
            let looks = StreamName::HUB.into_iter().any(|stream| publish.contains(&stream_info(stream)));
            assert_eq!(looks, matches!(role, Role::CoreStream | Role::Provisioner), "{role:?}");
        }
    }

    #[test]
    fn the_gatekeeper_cannot_change_what_it_knows_or_take_back_what_it_said() {
        let publish = role_permissions(Role::Gatekeeper).publish;
        let is_forbidden = |subject: &&String| {
            subject.starts_with("$KV.") || subject.contains("PURGE") || subject.contains(gate::DECISIONS)
        };
        assert_eq!(publish.iter().filter(is_forbidden).collect::<Vec<_>>(), Vec::<&String>::new());
        let writer = role_permissions(Role::GateWriter).publish;
        let is_removal = |subject: &&String| ["PURGE", "DELETE"].iter().any(|act| subject.contains(act));
        assert_eq!(writer.iter().filter(is_removal).collect::<Vec<_>>(), Vec::<&String>::new());
        assert_eq!(role_permissions(Role::Sentinel), Permissions::default());
    }

    #[test]
    fn only_the_backup_reads_whole_streams_and_it_removes_nothing() {
        for role in ROLES {
            let publish = role_permissions(role).publish;
            let is_reader = publish.iter().any(|subject| subject.contains("SNAPSHOT") || subject.contains("RESTORE"));
            assert_eq!(is_reader, role == Role::Backup, "{role:?}");
        }
        let backup = role_permissions(Role::Backup).publish;
        let harm = ["DELETE", "PURGE", "UPDATE", "CREATE", "$JS.ACK"];
        assert!(backup.iter().all(|subject| harm.iter().all(|word| !subject.contains(word))), "{backup:?}");
    }

    #[test]
    fn a_leaf_speaks_for_its_own_site_only() {
        let leaf = role_permissions(Role::Leaf);
        assert_eq!(
            leaf.publish,
            ["up.{{tag(site)}}.fwd.results", "up.{{tag(site)}}.fwd.backfill", "live.{{tag(site)}}.>"]
        );
        assert_eq!(
            leaf.subscribe,
            ["down.{{tag(site)}}.*.*", "t.{{account-subject()}}.down.{{tag(site)}}.*.*", "_INBOX_{{tag(site)}}.>"]
        );
    }

    #[test]
    fn edge_users_have_their_names_filled_in() {
        let site: SiteName = "oslo".parse().unwrap();
        let poller = edge_permissions(&site, &EdgeRole::Poller("p1".parse().unwrap()));
        assert_eq!(poller.publish, ["results.p1", "live.oslo.p1.*"]);
        assert_eq!(poller.subscribe, ["down.oslo.p1.*", "_INBOX_oslo.p1.>"]);
        let forwarder = edge_permissions(&site, &EdgeRole::Forwarder);
        assert!(forwarder.publish.contains(&"up.oslo.fwd.results".to_owned()));
        assert!(forwarder.publish.contains(&"backfill.*".to_owned()));
        assert!(!forwarder.publish.iter().any(|subject| subject.starts_with("results.")));
        assert!(forwarder.publish.iter().all(|s| !s.contains("PURGE")));
        assert!(forwarder.publish.iter().all(|s| !s.contains("STREAM.DELETE") && !s.contains("MSG.DELETE")));
        assert_eq!(forwarder.subscribe, ["_INBOX_oslo.fwd.>"]);
    }
}
