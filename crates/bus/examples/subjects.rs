//! Prints `docs/subjects.md` from the table. `cargo xtask tidy` compares it; `cargo xtask tidy --write` renews it.

use std::io::{self, Write};

use bulkhead_bus::{
    EdgeRole, Permissions, Role, SUBJECTS, SiteName, StreamName, SubjectRow, Way, edge_permissions, role_permissions,
};

const STREAMS: [StreamName; 4] =
    [StreamName::Results, StreamName::Backfill, StreamName::ResultsEdge, StreamName::BackfillEdge];

/// Every role, in the order of the page.
fn roles() -> Vec<Role> {
    let others = [Role::CoreLive, Role::PlatformAdmin, Role::SystemOperator];
    let gate = [Role::Gatekeeper, Role::GateWriter, Role::GateWatch, Role::Sentinel];
    Role::TENANT.into_iter().chain(Role::CORE).chain(others).chain(gate).collect()
}

fn account_of(role: Role) -> &'static str {
    match role {
        Role::Leaf | Role::Poller | Role::Admin | Role::Viewer => "tenant",
        Role::PlatformAdmin => "OPS",
        Role::CoreStream
        | Role::CoreRpc
        | Role::DispatchPush
        | Role::DispatchRpc
        | Role::RegistryRpc
        | Role::RegistryKeep
        | Role::Provisioner
        | Role::Backup => "CORE",
        Role::CoreLive => "INTAKE",
        Role::SystemOperator | Role::GateWatch => "SYS",
        Role::Gatekeeper | Role::GateWriter => "AUTH",
        Role::Sentinel => "SENT",
    }
}

fn way_of(way: Way) -> String {
    match way {
        Way::Durable(stream) => format!("stream `{}`, at least once", stream.as_str()),
        Way::Request => "request and reply".to_owned(),
        Way::Live => "at most once, display only".to_owned(),
        Way::WakeUp => "at most once, wake-up only".to_owned(),
        Way::Edge(stream) => format!("stream `{}` on the leaf, at least once", stream.as_str()),
        Way::Service => "request and reply, between services".to_owned(),
        Way::Event => "at most once, between services".to_owned(),
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn list(items: impl IntoIterator<Item = String>, when_empty: &str) -> String {
    let items: Vec<String> = items.into_iter().collect();
    if items.is_empty() { when_empty.to_owned() } else { items.join("<br>") }
}

/// The two ends of a row. On a leaf they are its local users, which are no roles of an account.
fn ends(row: &SubjectRow) -> (String, String) {
    let names = |roles: &[Role]| roles.iter().map(|role| role.name().to_owned()).collect::<Vec<_>>();
    match row.way {
        Way::Edge(_) => ("edge poller".to_owned(), "edge forwarder".to_owned()),
        Way::Durable(_) => (list(names(row.from), "edge forwarder"), list(names(row.to), "nobody")),
        // What pollers ask they ask over the leaf, as its local users.
        Way::Request if row.via_leaf => {
            let edge = if row.pattern.contains("<name>") { "edge poller<br>edge forwarder" } else { "edge poller" };
            (format!("{edge}<br>{}", list(names(row.from), "nobody")), list(names(row.to), "nobody"))
        }
        Way::Request | Way::Live | Way::WakeUp | Way::Service | Way::Event => {
            (list(names(row.from), "nobody"), list(names(row.to), "nobody"))
        }
    }
}

fn write_subjects(page: &mut impl Write) -> io::Result<()> {
    writeln!(page, "## Subjects\n")?;
    writeln!(
        page,
        "| In the tenant's account | In CORE or INTAKE | From | To | By leaf | Way | Payload | What it is |"
    )?;
    writeln!(page, "|---|---|---|---|---|---|---|---|")?;
    for row in SUBJECTS {
        let (from, to) = ends(row);
        let in_core = row.core_pattern().map_or_else(|| "never leaves the site".to_owned(), |pattern| code(&pattern));
        let by_leaf = if row.via_leaf { "yes" } else { "no" };
        let own = if row.is_a_tenants() { code(row.pattern) } else { "never".to_owned() };
        let way = way_of(row.way);
        writeln!(page, "| {own} | {in_core} | {from} | {to} | {by_leaf} | {way} | {} | {} |", row.payload, row.about)?;
    }
    Ok(())
}

fn write_rights(page: &mut impl Write, role: &str, account: &str, permissions: &Permissions) -> io::Result<()> {
    let publish = list(permissions.publish.iter().map(|subject| code(subject)), "nothing");
    let subscribe = list(permissions.subscribe.iter().map(|subject| code(subject)), "nothing");
    writeln!(page, "| {role} | {account} | {publish} | {subscribe} |")
}

fn write_roles(page: &mut impl Write) -> io::Result<()> {
    writeln!(page, "\n## Roles\n")?;
    writeln!(
        page,
        "Each role is a scoped signing key of its account. The server fills in what stands in `{{{{..}}}}`."
    )?;
    writeln!(page, "Only what is listed is allowed; \"nothing\" is an explicit deny of everything.\n")?;
    writeln!(page, "| Role | Account | May publish | May subscribe |\n|---|---|---|---|")?;
    for role in roles() {
        write_rights(page, role.name(), account_of(role), &role_permissions(role))?;
    }
    Ok(())
}

fn write_edge(page: &mut impl Write) -> io::Result<()> {
    let site: SiteName = "oslo".parse().expect("oslo is a site name");
    let poller = EdgeRole::Poller("p1".parse().expect("p1 is a poller name"));
    writeln!(page, "\n## Users of a leaf\n")?;
    writeln!(page, "Local users of one site's leaf, shown for site `oslo` and poller `p1`.\n")?;
    writeln!(page, "| User | Account | May publish | May subscribe |\n|---|---|---|---|")?;
    write_rights(page, "edge poller", "the leaf's own", &edge_permissions(&site, &poller))?;
    write_rights(page, "edge forwarder", "the leaf's own", &edge_permissions(&site, &EdgeRole::Forwarder))
}

fn write_streams(page: &mut impl Write) -> io::Result<()> {
    writeln!(page, "\n## Streams\n")?;
    writeln!(page, "Work queues on file storage that refuse what is new when they are full. No `max_deliver`, no")?;
    writeln!(page, "deduplication by message id.\n")?;
    writeln!(
        page,
        "| Stream | Subjects | Bytes | Messages per subject | Bytes per message | Consumer | Ack wait | Unacknowledged |"
    )?;
    writeln!(page, "|---|---|---|---|---|---|---|---|")?;
    for stream in STREAMS {
        let spec = stream.spec();
        let subjects = list(spec.subjects.iter().map(|subject| code(subject)), "none");
        let quota = spec.max_messages_per_subject.map_or_else(|| "no quota".to_owned(), |most| most.to_string());
        writeln!(
            page,
            "| `{}` | {subjects} | {} | {quota} | {} | `{}` | {} s | {} |",
            spec.name,
            spec.max_bytes,
            spec.max_message_bytes,
            spec.consumer.name,
            spec.consumer.ack_wait_s,
            spec.consumer.max_ack_pending
        )?;
    }
    Ok(())
}

fn write_page(page: &mut impl Write) -> io::Result<()> {
    writeln!(page, "<!-- Rendered from crates/bus by `cargo xtask tidy --write`; an edit here is overwritten. -->\n")?;
    writeln!(page, "# Subjects, roles and streams\n")?;
    writeln!(
        page,
        "Everything that is spoken on the bus, as `crates/bus/src/table.rs` says it. `<T>` is the public key of the"
    )?;
    writeln!(
        page,
        "tenant's account: in CORE and INTAKE the server writes it, and nobody else can. What is said in the"
    )?;
    writeln!(page, "payloads is in [wire.md](wire.md).\n")?;
    write_subjects(page)?;
    write_roles(page)?;
    write_edge(page)?;
    write_streams(page)
}

fn main() -> io::Result<()> {
    write_page(&mut io::stdout().lock())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::{DETAIL_BYTES_MAX, LIST_LIMIT_MAX, RESULTS_PER_BATCH_MAX};
    use bulkhead_bus::{
        AssignmentVerb, CoreVerb, DispatchVerb, LeaseVerb, LiveKind, MAX_BATCH_BYTES, RegistryVerb, WakeUp, header,
    };

    #[test]
    fn the_page_names_every_role_stream_and_subject_of_the_table() {
        let mut page = Vec::new();
        write_page(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for row in SUBJECTS {
            let shown = if row.is_a_tenants() { Some(row.pattern.to_owned()) } else { row.core_pattern() };
            assert!(shown.is_some_and(|shown| page.contains(&code(&shown))), "{}", row.pattern);
            for role in row.from.iter().chain(row.to) {
                assert!(roles().contains(role), "{role:?} has no line");
            }
            if let Way::Durable(stream) | Way::Edge(stream) = row.way {
                assert!(STREAMS.contains(&stream), "{stream:?} has no line");
            }
        }
        for role in roles() {
            assert!(page.contains(&format!("\n| {} |", role.name())), "{role:?}");
        }
    }

    #[test]
    fn every_table_row_has_as_many_cells_as_its_head() {
        let mut page = Vec::new();
        write_page(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        let mut cells = 0;
        for line in page.lines() {
            let count = line.matches('|').count();
            assert!(!line.starts_with('|') || cells == 0 || count == cells, "{line}");
            cells = if line.starts_with('|') { count } else { 0 };
        }
    }

    /// As the page writes numbers: `65,536`.
    fn grouped(number: usize) -> String {
        let digits = number.to_string();
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
        groups.join(",")
    }

    #[test]
    fn the_page_on_payloads_names_every_token_header_and_limit() {
        let page = include_str!("../../../docs/wire.md");
        let verbs = CoreVerb::ALL.iter().map(|verb| verb.token());
        let tokens = verbs
            .chain(WakeUp::ALL.iter().map(|verb| verb.token()))
            .chain(LiveKind::ALL.iter().map(|kind| kind.token()))
            .chain(LeaseVerb::ALL.iter().map(|verb| verb.token()))
            .chain(RegistryVerb::ALL.iter().map(|verb| verb.token()))
            .chain(AssignmentVerb::ALL.iter().map(|verb| verb.token()))
            .chain(DispatchVerb::ALL.iter().map(|verb| verb.token()));
        for word in tokens.chain([header::SIGNATURE, header::KEY, header::SEQUENCE]) {
            assert!(page.contains(&code(word)), "{word}");
        }
        let limits = [MAX_BATCH_BYTES.unsigned_abs(), LIST_LIMIT_MAX].map(|limit| limit as usize);
        for limit in limits.into_iter().chain([RESULTS_PER_BATCH_MAX, DETAIL_BYTES_MAX]) {
            assert!(page.contains(&grouped(limit)), "{limit}");
        }
        assert_eq!(grouped(65_536), "65,536");
    }
}
