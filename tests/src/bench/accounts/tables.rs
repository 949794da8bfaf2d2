//! The figures as lines for a terminal and as tables of the page.

use std::fmt::Write;
use std::time::Duration;

use super::super::report::machine;
use super::onboarding::step_medians;
use super::signing::Signing;
use super::times::ms;
use super::{AccountsMeasured, AtSize, Restart};

fn mib(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

fn ratio(over: Duration, under: Duration) -> String {
    format!("{:.1}", over.as_secs_f64() / under.as_secs_f64().max(f64::EPSILON))
}

/// What was measured at one size, in a line.
pub(super) fn line(at: &AtSize) -> String {
    let mut line = format!("{} to {} tenants: hub {} MiB", at.tenants.0, at.tenants.1, mib(at.hub_bytes));
    if let Some(onboarding) = &at.onboarding {
        let _ = write!(line, "; onboarding {} ms, until results {} ms", onboarding.added, onboarding.until_results);
        let _ = write!(line, ", live import {} ms, program {} ms", onboarding.live, onboarding.program);
    }
    if let Some(nsc) = &at.nsc {
        let _ = write!(line, "; nsc add {} ms, push {} ms", nsc.add, nsc.push);
    }
    if let Some(revocations) = &at.revocations {
        let _ = write!(line, "; revoked to disconnected {} ms", revocations.to_disconnect);
    }
    if let Some(out) = &at.putting_out {
        let _ = write!(line, "; out: poller {} ms, site {} ms, tenant {} ms", out.pollers, out.sites, out.tenants);
    }
    line
}

/// The section of the page.
#[must_use]
pub fn render_accounts(measured: &AccountsMeasured) -> String {
    let mut page = String::new();
    let _ = writeln!(page, "Machine: {}.\n", machine());
    if measured.sizes.iter().any(|at| at.onboarding.is_some()) {
        page.push_str(&onboarding_table(&measured.sizes));
        page.push_str(&steps_table(&measured.sizes));
    }
    if measured.sizes.iter().any(|at| at.nsc.is_some()) {
        page.push_str(&nsc_table(&measured.sizes));
    }
    if measured.sizes.iter().any(|at| at.revocations.is_some()) {
        page.push_str(&revocation_table(&measured.sizes));
    }
    if !measured.sizes.is_empty() {
        page.push_str(&hub_table(&measured.sizes, measured.restart.as_ref()));
    }
    if let Some(signing) = &measured.signing {
        page.push_str(&signing_table(signing));
    }
    page
}

fn onboarding_table(sizes: &[AtSize]) -> String {
    let mut table = String::from(
        "Onboarding, ms: median and p99 (of fewer than a hundred: the slowest)\n\n\
         | Tenants | Onboardings | In force, proved, in the database | First batch | Until results flow | To the first row | Live import | `bulkhead tenant add` |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let first = sizes.iter().find_map(|at| at.onboarding.as_ref());
    for (at, onboarding) in sizes.iter().filter_map(|at| Some((at, at.onboarding.as_ref()?))) {
        let base = first.map_or(Duration::ZERO, |first| first.until_results.median());
        let _ = writeln!(
            table,
            "| {} to {} | {} | {} | {} | {} | {} | {} | {} |",
            at.tenants.0,
            at.tenants.1,
            onboarding.added.count(),
            onboarding.added,
            onboarding.first_batch,
            onboarding.until_results,
            ratio(onboarding.until_results.median(), base),
            onboarding.live,
            onboarding.program,
        );
    }
    table.push('\n');
    table
}

fn steps_table(sizes: &[AtSize]) -> String {
    let all: Vec<_> = sizes.iter().filter_map(|at| Some((at, at.onboarding.as_ref()?))).collect();
    let Some((_, first)) = all.first() else { return String::new() };
    let mut table = String::from("Where an onboarding's time goes, ms, medians\n\n| Step |");
    for (at, _) in &all {
        let _ = write!(table, " {} |", at.tenants.1);
    }
    let _ = writeln!(table, "\n|---|{}", "---|".repeat(all.len()));
    for (step, _) in &first.steps {
        let _ = write!(table, "| {step} |");
        for (_, onboarding) in &all {
            let took = step_medians(onboarding).get(step.as_str()).copied().unwrap_or_default();
            let _ = write!(table, " {} |", ms(took));
        }
        table.push('\n');
    }
    table.push('\n');
    table
}

fn nsc_table(sizes: &[AtSize]) -> String {
    let mut table = String::from(
        "nsc on a store with the same accounts, ms: median and p99; the ratios are those of the medians\n\n\
         | Accounts in nsc's store | Runs | `nsc add account` | `nsc push` | Both | To our onboarding | To `bulkhead tenant add` |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (at, nsc) in sizes.iter().filter_map(|at| Some((at, at.nsc.as_ref()?))) {
        let to = |ours: Option<Duration>| ours.map_or_else(String::new, |ours| ratio(nsc.both.median(), ours));
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} |",
            nsc.accounts,
            nsc.both.count(),
            nsc.add,
            nsc.push,
            nsc.both,
            to(at.onboarding.as_ref().map(|ours| ours.added.median())),
            to(at.onboarding.as_ref().map(|ours| ours.program.median())),
        );
    }
    table.push('\n');
    table
}

fn revocation_table(sizes: &[AtSize]) -> String {
    let mut table = String::from(
        "Revocation, ms: median and p99\n\n| Tenants | Revocations | To the end of the connection | Until every server shows it |\n|---|---|---|---|\n",
    );
    let all = sizes.iter().filter_map(|at| Some((at, at.revocations.as_ref()?)));
    for (at, revocations) in all {
        let (ended, call) = (&revocations.to_disconnect, &revocations.call);
        let _ = writeln!(table, "| {} | {} | {ended} | {call} |", at.tenants.1, ended.count());
    }
    table.push('\n');
    let mut rows = sizes.iter().filter_map(|at| Some((at, at.putting_out.as_ref()?))).peekable();
    if rows.peek().is_some() {
        table.push_str(
            "Putting out, ms: median and p99, from the call to the last batch that core stores, to the end of the leaf's link, and to the \
             end of a person's connection\n\n| Tenants | Of each | `poller revoke` | `site remove` | `tenant suspend` |\n|---|---|---|---|---|\n",
        );
    }
    for (at, out) in rows {
        let (count, tenants) = (out.pollers.count(), at.tenants.1);
        let _ = writeln!(table, "| {tenants} | {count} | {} | {} | {} |", out.pollers, out.sites, out.tenants);
    }
    table.push('\n');
    table
}

fn hub_table(sizes: &[AtSize], restart: Option<&Restart>) -> String {
    let mut table = String::from("| Tenants | Hub, MiB | Filled by the quick path |\n|---|---|---|\n");
    for at in sizes {
        let (count, took) = at.filled;
        let _ =
            writeln!(table, "| {} | {} | {count} in {:.0} s |", at.tenants.1, mib(at.hub_bytes), took.as_secs_f64());
    }
    if let Some(restart) = restart {
        let Restart { tenants, shards, results, live, bytes_before, bytes_after } = restart;
        let _ = writeln!(
            table,
            "\nHub killed and started again with {tenants} tenants: a result that was measured since is committed after \
             {:.1} s; core is in all {shards} INTAKE accounts after {:.1} s. The hub had {} MiB before and has {} MiB then.",
            results.as_secs_f64(),
            live.as_secs_f64(),
            mib(*bytes_before),
            mib(*bytes_after)
        );
    }
    table.push('\n');
    table
}

fn signing_table(measured: &Signing) -> String {
    let mut table = String::new();
    let Signing { count, ours, go } = measured;
    let _ =
        writeln!(table, "| {count} account tokens | Bulkhead, s | Go library, s | Go to Bulkhead |\n|---|---|---|---|");
    let rows = [
        ("sign", ours.sign_s, go.sign_s),
        ("decode and verify", ours.decode_s, go.decode_s),
        ("validate", ours.validate_s, go.validate_s),
    ];
    for (what, ours, go) in rows {
        let _ = writeln!(table, "| {what} | {ours:.3} | {go:.3} | {:.2} |", go / ours);
    }
    let _ = writeln!(table, "\nA token has {} bytes here and {} there.", ours.token_bytes, go.token_bytes);
    table
}
