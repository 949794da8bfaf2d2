//! A poller as a member of its tenant, from lease to results, against a real server and whoever answers at the hub.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod hub;

use std::net::SocketAddr;
use std::path::Path;

use bulkhead_bus::WakeUp;
use bulkhead_bus::payload::{AssignedCheck, Measured, Outcome, Reason, RunOrder};
use bulkhead_poller::{Config, run};
use bulkhead_runtime::{Stop, eventually, now_ms};
use bulkhead_testkit::{free_ports, scrape};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::hub::{Leaf, Mood, State, assigned};

const NO_FORWARDER: &str = "[forwarder]\nenabled = false\n";

struct Running {
    stop: Stop,
    task: JoinHandle<anyhow::Result<()>>,
}

fn start(settings: &Path) -> Running {
    let (config, stop) = (Config::load(Some(settings)).unwrap(), Stop::new());
    Running { task: tokio::spawn(run(config, stop.clone())), stop }
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn target() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn last<'a>(state: &'a State, verb: &str) -> Option<&'a serde_json::Value> {
    state.asked.iter().rev().find(|(asked, _)| asked == verb).map(|(_, question)| question)
}

fn count(state: &State, verb: &str) -> usize {
    state.asked.iter().filter(|(asked, _)| asked == verb).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poller_registers_runs_what_it_is_assigned_and_says_when_it_ends() {
    let leaf = Leaf::start(true).await;
    let (_listener, target) = target().await;
    leaf.set(|state| {
        (state.generation, state.checks) = (7, vec![assigned("b", 7, target), assigned("a", 7, target)]);
    });
    let poller = start(&leaf.settings(NO_FORWARDER));
    let register = leaf.until("register", |state| last(state, "register").cloned()).await;
    assert_eq!((&register["class"], &register["info"]["labels"]["zone"]), (&"normal".into(), &"dmz".into()));
    assert_eq!(register["state"], "joining");
    assert!(register["info"]["sealing_key"].as_str().unwrap().starts_with('X'));
    let capabilities = register["info"]["capabilities"].as_array().unwrap();
    assert!(capabilities.iter().any(|capability| capability["kind"] == "tcp"));
    let renew = leaf.until("the applied generation", |state| {
        last(state, "renew").filter(|renew| renew["applied_generation"] == 7).cloned()
    });
    assert_eq!(renew.await["state"], "ready");
    for name in ["a", "b"] {
        let result = leaf.until(name, |state| {
            state.results.iter().find(|result| result.check.as_str() == name && result.outcome == Outcome::Ok).cloned()
        });
        let result = result.await;
        assert_eq!((result.generation, result.island), (7, false));
    }
    // Taken away and given anew: woken, not believed.
    leaf.set(|state| (state.generation, state.checks) = (8, vec![assigned("a", 8, target)]));
    leaf.wake(WakeUp::Assign).await;
    leaf.until("the newer one", |state| state.results.iter().any(|result| result.generation == 8).then_some(())).await;
    let renewed = leaf
        .until("8 is applied", |state| last(state, "renew").filter(|renew| renew["applied_generation"] == 8).cloned());
    assert_eq!(renewed.await["load"]["checks"], 1);
    leaf.set(|state| state.clock_behind_ms = 5_000);
    leaf.until("degraded", |state| last(state, "renew").filter(|renew| renew["reasons"][0] == "clock").map(|_| ()))
        .await;
    poller.stop().await;
    let state = leaf.state.lock().unwrap();
    assert_eq!(last(&state, "renew").unwrap()["state"], "draining");
    assert_eq!(
        (&state.asked.last().unwrap().0, &state.asked.last().unwrap().1["reason"]),
        (&"deregister".to_owned(), &"stopped".into())
    );
    let slots: Vec<_> = state.results.iter().map(|result| (result.check.clone(), result.slot_ms)).collect();
    let once: std::collections::BTreeSet<_> = slots.iter().cloned().collect();
    assert_eq!(slots.len(), once.len(), "no slot twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_it_goes_on_as_an_island_and_fenced_it_stops() {
    let leaf = Leaf::start(true).await;
    let (_listener, target) = target().await;
    leaf.set(|state| (state.generation, state.checks) = (3, vec![assigned("web", 3, target)]));
    let local = format!(
        "[[checks]]\nname = \"own\"\nkind = \"tcp\"\ntarget = \"{target}\"\ninterval_s = 1\ntimeout_ms = 500\n"
    );
    let poller = start(&leaf.settings(&format!("{NO_FORWARDER}{local}")));
    let is_web = |island: bool| {
        move |state: &State| {
            state.results.iter().any(|result| result.generation == 3 && result.island == island).then_some(())
        }
    };
    leaf.until("a result", is_web(false)).await;
    leaf.set(|state| state.mood = Mood::Silent);
    leaf.until("an island's result", is_web(true)).await;
    leaf.set(|state| {
        state.mood = Mood::Grants;
        state.results.clear();
    });
    leaf.until("a result with a lease again", is_web(false)).await;
    leaf.set(|state| state.mood = Mood::Fences);
    leaf.until("fenced", |state| (last(state, "renew").is_some() && state.mood == Mood::Fences).then_some(())).await;
    // What is of the poller's own goes on, and what was assigned does not.
    let asked = leaf.until("renewals end", |state| Some(count(state, "renew"))).await;
    let own = |state: &State, least: usize| {
        let own: Vec<_> = state.results.iter().rev().take_while(|result| result.generation == 0).collect();
        (own.len() >= least).then_some(())
    };
    leaf.until("three of its own in a row", |state| own(state, 3)).await;
    leaf.until("rarely", |state| (count(state, "renew") <= asked + 1).then_some(())).await;
    poller.stop().await;
    assert_eq!(count(&leaf.state.lock().unwrap(), "deregister"), 0, "the name is another's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_without_the_hub_from_what_it_was_assigned_before() {
    let leaf = Leaf::start(true).await;
    let (_listener, target) = target().await;
    leaf.set(|state| (state.generation, state.checks) = (3, vec![assigned("web", 3, target)]));
    let settings = leaf.settings(NO_FORWARDER);
    let first = start(&settings);
    leaf.until("a result", |state| state.results.iter().any(|result| result.generation == 3).then_some(())).await;
    first.stop().await;
    leaf.set(|state| {
        state.mood = Mood::Silent;
        state.results.clear();
    });
    let second = start(&settings);
    let found = leaf.until("an island's result", |state| {
        state.results.iter().find(|result| result.island && result.outcome == Outcome::Ok).cloned()
    });
    assert_eq!(found.await.generation, 3);
    second.stop().await;
    let kept = std::fs::read_to_string(leaf.folder.path().join("state/assignment.json")).unwrap();
    assert!(kept.contains("\"web\""), "{kept}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_on_demand_is_reported_and_is_no_result() {
    let leaf = Leaf::start(true).await;
    let (listener, target) = target().await;
    drop(listener);
    let id = uuid::Uuid::new_v4();
    let order =
        |id| RunOrder { id, probe: assigned("adhoc", 0, target).probe, left_ms: 10_000, secrets: Default::default() };
    leaf.set(|state| state.runs = vec![order(id)]);
    let poller = start(&leaf.settings(NO_FORWARDER));
    leaf.until("a lease", |state| last(state, "fetch_assignment").map(|_| ())).await;
    leaf.wake(WakeUp::Run).await;
    let report = leaf.until("the report", |state| last(state, "report_run").cloned()).await;
    assert_eq!((&report["id"], &report["measured"]["outcome"]), (&id.to_string().into(), &"fail".into()));
    assert_eq!(report["measured"]["reason"], serde_json::to_value(Reason::Refused).unwrap());
    // The same order again is not run again; another is.
    let other = uuid::Uuid::new_v4();
    leaf.set(|state| state.runs = vec![order(id), order(other)]);
    leaf.wake(WakeUp::Run).await;
    leaf.until("the other report", |state| {
        last(state, "report_run").filter(|report| report["id"] == other.to_string()).map(|_| ())
    })
    .await;
    assert_eq!(count(&leaf.state.lock().unwrap(), "report_run"), 2);
    poller.stop().await;
    assert!(leaf.state.lock().unwrap().results.is_empty(), "{}", now_ms());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_hub_without_leases_everything_is_as_it_was() {
    let leaf = Leaf::start(false).await;
    let (_listener, target) = target().await;
    let local = format!(
        "[[checks]]\nname = \"own\"\nkind = \"tcp\"\ntarget = \"{target}\"\ninterval_s = 1\ntimeout_ms = 500\n"
    );
    let poller = start(&leaf.settings(&format!("{NO_FORWARDER}{local}")));
    let result = leaf.until("a result", |state| state.results.first().cloned()).await;
    assert_eq!((result.outcome, result.generation, result.island), (Outcome::Ok, 0, false));
    poller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_forwarder_has_a_lease_for_the_leaf_link_and_goes_on_without() {
    let leaf = Leaf::start(true).await;
    let forwarder = format!("[forwarder.leaf]\n{}", leaf.connection("fwd"));
    let poller = start(&leaf.settings(&forwarder));
    let register = leaf.until("register", |state| last(state, "leaf link: register").cloned()).await;
    assert_eq!((&register["info"]["capacity"], &register["info"].get("sealing_key")), (&0.into(), &None));
    leaf.until("renew", |state| last(state, "leaf link: renew").map(|_| ())).await;
    leaf.until("the poller's own", |state| last(state, "renew").map(|_| ())).await;
    leaf.set(|state| state.mood = Mood::FencesLink);
    let renewals = |state: &State| (count(state, "renew"), count(state, "leaf link: renew"));
    let before = leaf.until("renewals", |state| Some(renewals(state))).await;
    // The poller goes on renewing, and the link is told once.
    let after =
        leaf.until("the poller's own go on", |state| Some(renewals(state)).filter(|(own, _)| *own > before.0 + 10));
    assert!(after.await.1 <= before.1 + 1);
    poller.stop().await;
    assert_eq!(count(&leaf.state.lock().unwrap(), "leaf link: deregister"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_that_takes_nothing_is_said_and_stops_nothing() {
    let leaf = Leaf::start(true).await;
    let (_listener, target) = target().await;
    leaf.set(|state| (state.generation, state.checks) = (3, vec![assigned("web", 3, target)]));
    let poller = start(&leaf.settings(NO_FORWARDER));
    leaf.until("a result", |state| state.results.iter().any(|result| result.generation == 3).then_some(())).await;
    std::fs::remove_dir_all(leaf.folder.path().join("state")).unwrap();
    let said = leaf
        .until("degraded", |state| last(state, "renew").filter(|renew| renew["reasons"][0] == "disk_full").cloned());
    assert_eq!(said.await["state"], "degraded");
    // What is assigned meanwhile is run, though it cannot be kept.
    leaf.set(|state| (state.generation, state.checks) = (4, vec![assigned("web", 4, target)]));
    leaf.wake(WakeUp::Assign).await;
    leaf.until("the newer one", |state| state.results.iter().any(|result| result.generation == 4).then_some(())).await;
    poller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_stopped_runs_what_it_has_until_others_have_it() {
    let leaf = Leaf::start(true).await;
    let (_listener, target) = target().await;
    leaf.set(|state| (state.generation, state.checks) = (3, vec![assigned("web", 3, target)]));
    let poller = start(&leaf.settings(NO_FORWARDER));
    leaf.until("a result", |state| state.results.iter().any(|result| result.generation == 3).then_some(())).await;
    poller.stop.cancel();
    leaf.until("draining", |state| last(state, "renew").filter(|renew| renew["state"] == "draining").map(|_| ())).await;
    let until_ms = now_ms() + 3_000;
    leaf.set(|state| {
        let ends = AssignedCheck { until_ms: Some(until_ms), ..assigned("web", 3, target) };
        (state.generation, state.checks) = (4, vec![ends]);
    });
    leaf.wake(WakeUp::Assign).await;
    poller.task.await.unwrap().unwrap();
    let state = leaf.state.lock().unwrap();
    assert_eq!(state.asked.last().unwrap().0, "deregister");
    let slots: std::collections::BTreeSet<i64> = state.results.iter().map(|result| result.slot_ms).collect();
    let (first, last) = (*slots.first().unwrap(), *slots.last().unwrap());
    assert!(last < until_ms && last + 1_000 >= until_ms, "the last slot before {until_ms} is run: {slots:?}");
    assert_eq!(slots.len(), usize::try_from((last - first) / 1_000 + 1).unwrap(), "and each before it: {slots:?}");
    assert!(state.results.iter().all(|result| result.outcome == Outcome::Ok), "{:?}", state.results);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_read_again_and_wrong_ones_change_nothing() {
    let leaf = Leaf::start(true).await;
    let (_listener, target) = target().await;
    let [health] = free_ports().unwrap();
    leaf.set(|state| (state.generation, state.checks) = (3, vec![assigned("web", 3, target)]));
    let local = format!(
        "[[checks]]\nname = \"own\"\nkind = \"tcp\"\ntarget = \"{target}\"\ninterval_s = 1\ntimeout_ms = 500\n"
    );
    let file = leaf.settings(NO_FORWARDER);
    let text = format!("health_listen = \"127.0.0.1:{health}\"\n{}", std::fs::read_to_string(&file).unwrap());
    std::fs::write(&file, &text).unwrap();
    let poller = start(&file);
    let result = |check: &'static str, outcome| {
        move |state: &State| {
            let is_it = |result: &&Measured| result.check.as_str() == check && result.outcome == outcome;
            state.results.iter().find(is_it).map(|_| ())
        }
    };
    leaf.until("a result", result("web", Outcome::Ok)).await;
    let shows = |line: &'static str| {
        eventually(line, hub::LIMIT, move || async move {
            let (_, page) = scrape::get(health, "/metrics").await.map_err(|error| format!("{error:#}"))?;
            if page.lines().any(|shown| shown == line) { Ok(()) } else { Err(page) }
        })
    };

    // Other labels, a check of its own, a rule, and one thing that wants a new start.
    let other = text
        .replace("zone = \"dmz\"", "zone = \"core\"")
        .replace("[identity]", "capacity = 32\n[batch]\nlinger_ms = 50\n[rules]\ndeny = [\"127.0.0.0/8\"]\n[identity]");
    std::fs::write(&file, format!("{other}{local}")).unwrap();
    let register = leaf.until("other labels", |state| {
        last(state, "register").filter(|register| register["info"]["labels"]["zone"] == "core").cloned()
    });
    let register = register.await;
    assert_eq!((&register["info"]["capacity"], &register["state"]), (&32.into(), &"ready".into()));
    leaf.until("the new check is denied", result("own", Outcome::Error)).await;
    leaf.until("and the old one", result("web", Outcome::Error)).await;
    shows("poller_settings_waiting 1").await.unwrap();

    // Wrong from one end to the other.
    std::fs::write(&file, format!("{other}{}", local.replace("interval_s = 1", "interval_s = 0"))).unwrap();
    shows("poller_settings_refused 1").await.unwrap();
    leaf.set(|state| state.results.clear());
    leaf.until("what was in force goes on", result("own", Outcome::Error)).await;

    // As it was in the beginning.
    std::fs::write(&file, &text).unwrap();
    shows("poller_settings_refused 0").await.unwrap();
    shows("poller_settings_waiting 0").await.unwrap();
    leaf.until("it may ask again", result("web", Outcome::Ok)).await;
    leaf.set(|state| state.results.clear());
    leaf.until("three slots of the other", |state| {
        let web = state.results.iter().filter(|result| result.check.as_str() == "web").count();
        (web >= 3).then(|| assert!(state.results.iter().all(|result| result.check.as_str() == "web")))
    })
    .await;
    let registered = count(&leaf.state.lock().unwrap(), "register");
    poller.stop().await;
    assert_eq!(registered, 3, "whoever has nothing new to say of itself does not register");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_on_a_disk_without_room_and_says_so() {
    let small = |script: &str| {
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).kill_on_drop(true);
        command
    };
    if !small("mount -t tmpfs tmpfs /mnt").status().await.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a disk without room: small disks need the right to mount: run this test as root");
        return;
    }
    let leaf = Leaf::start(true).await;
    let (_listener, target) = target().await;
    leaf.set(|state| (state.generation, state.checks) = (3, vec![assigned("web", 3, target)]));
    let settings = leaf.settings(NO_FORWARDER);
    let first = start(&settings);
    leaf.until("a result", |state| state.results.iter().any(|result| result.generation == 3).then_some(())).await;
    first.stop().await;
    let boot = last(&leaf.state.lock().unwrap(), "register").unwrap()["boot"].as_u64().unwrap();
    leaf.set(|state| {
        state.results.clear();
        state.asked.clear();
    });
    let script = "set -e; cp -a state kept; mount -t tmpfs -o size=256k tmpfs state; cp -a kept/. state
                  dd if=/dev/zero of=state/ballast bs=4k 2>/dev/null || true
                  exec \"$POLLER\" --config poller.toml";
    let mut second = small(script);
    second.current_dir(leaf.folder.path()).env("POLLER", env!("CARGO_BIN_EXE_bulkhead-poller"));
    let mut second = second.spawn().unwrap();
    leaf.until("a result again", |state| state.results.iter().any(|result| result.generation == 3).then_some(())).await;
    let renew = leaf
        .until("degraded", |state| last(state, "renew").filter(|renew| renew["reasons"][0] == "disk_full").cloned());
    assert!(renew.await["boot"].as_u64().unwrap() > boot, "no number is used twice");
    second.kill().await.unwrap();
}
