use super::*;
use serde_json::json;

const QUOTA: Quota =
    Quota { checks: 3, runs_per_minute: 20, interval_s_least: 10, vantages: 2, on_demand_per_minute: 5 };

fn definition(name: &str) -> Value {
    json!({"name": name, "type": "tcp", "target": "h:1", "interval": 30, "site": "oslo"})
}

fn there(names: &[&str]) -> BTreeMap<CheckName, Configured> {
    let configured = |name: &&str| {
        let definition = read_definition(&definition(name)).unwrap();
        (name.parse().unwrap(), Configured { definition, revision: 4 })
    };
    names.iter().map(configured).collect()
}

fn judged(
    names: &[&str],
    quota: Option<Quota>,
    changes: &[CheckChange],
    removes: bool,
) -> Result<Vec<Step>, ReplyError> {
    let sites = ["bergen", "lima", "oslo"].into_iter().map(|site| site.parse().unwrap()).collect();
    judge(&Judging { there: &there(names), sites: &sites, quota }, changes, removes)
}

fn acts(steps: Result<Vec<Step>, ReplyError>) -> Vec<String> {
    let shown = |step: Step| format!("{} {} {}", step.check, step.act.as_str(), step.now.map_or(0, |now| now.revision));
    steps.unwrap().into_iter().map(shown).collect()
}

fn check_refused(result: Result<Vec<Step>, ReplyError>, code: ErrorCode, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error:?}");
    for part in parts {
        assert!(error.message.contains(part), "{part:?} is not in {}", error.message);
    }
}

fn add(definition: Value) -> CheckChange {
    CheckChange::Add { definition }
}

fn edit(name: &str, fields: Value) -> CheckChange {
    CheckChange::Edit { name: name.to_owned(), fields: serde_json::from_value(fields).unwrap() }
}

#[test]
fn each_change_says_what_it_did_and_what_changes_nothing_has_no_revision() {
    let put = |definition| CheckChange::Put { definition };
    let name = |name: &str| name.to_owned();
    let changes = [
        add(definition("new")),
        put(definition("a")),
        CheckChange::Pause { name: name("b") },
        CheckChange::Resume { name: name("c") },
    ];
    let quota = Some(Quota { checks: 9, ..QUOTA });
    assert_eq!(
        acts(judged(&["a", "b", "c", "d"], quota, &changes, false)),
        ["a unchanged 4", "b paused 5", "c unchanged 4", "new added 1"]
    );
    let removing = [CheckChange::Remove { name: name("a") }, edit("b", json!({"target": "i:2"}))];
    assert_eq!(acts(judged(&["a", "b", "c"], quota, &removing, false)), ["a removed 0", "b changed 5"]);
    assert_eq!(acts(judged(&["a", "b", "c"], quota, &removing, true)), ["a removed 0", "b changed 5", "c removed 0"]);
}

#[test]
fn an_edit_sets_a_field_however_it_is_spelled_and_null_takes_it_back() {
    let edited = |fields| {
        let steps = judged(&["a"], Some(QUOTA), &[edit("a", fields)], false);
        steps.unwrap().remove(0).now.unwrap().definition
    };
    assert_eq!(edited(json!({"interval": "60s"})).probe.interval_s, 60);
    assert_eq!(edited(json!({"interval_s": 90})).probe.interval_s, 90);
    assert_eq!(edited(json!({"timeout": "2s"})).probe.timeout_ms, 2_000);
    assert_eq!(edited(json!({"sites": ["lima", "bergen"]})).sites.len(), 2);
    assert_eq!(edited(json!({"site": null, "labels": {"zone": "a"}})).labels.len(), 1);
    assert_eq!(edited(json!({"retries": 2, "timeout": "1s"})).probe.retries, 2);
    assert_eq!(edited(json!({"timeout": null, "interval": 40})).probe.timeout_ms, 5_000);
    let http = json!({"type": "http", "target": "http://h/", "expect_status": [200]});
    assert_eq!(edited(http).probe.options["expect_status"], json!([200]));
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_nothing_is_done() {
    let changes = [
        add(json!({"name": "Web!", "type": "htp", "interval": "soon", "sites": ["Oslo"]})),
        add(json!({"name": "x", "type": "tcp", "target": "h:1", "interval": 30, "site": "paris"})),
        add(definition("a")),
        edit("a", json!({"interval": 1, "timeout": 500})),
        edit("b", json!({"name": "c"})),
        CheckChange::Remove { name: "gone".to_owned() },
        CheckChange::Pause { name: "../x".to_owned() },
    ];
    let parts = [
        "check name \"Web!\" is not valid",
        "type \"htp\" is not one of",
        "target is missing",
        "interval \"soon\"",
        "site name \"Oslo\"",
        "there is no site \"paris\": there are bergen, lima, oslo",
        "check \"a\" is there already",
        "check \"a\" is named by two changes",
        "check \"a\": interval of 1 s: the plan allows 10 s at the least",
        "name cannot be edited",
        "check \"gone\" is not there",
        "check \"../x\" is not there",
    ];
    check_refused(judged(&["a", "b"], Some(QUOTA), &changes, false), ErrorCode::Invalid, &parts);
    check_refused(judged(&["a"], Some(QUOTA), &[add(definition("a"))], false), ErrorCode::Conflict, &["\"a\""]);
    let gone = [CheckChange::Remove { name: "gone".to_owned() }];
    check_refused(judged(&["a"], Some(QUOTA), &gone, false), ErrorCode::NotFound, &["\"gone\" is not there"]);
    let zero = json!({"name": "z", "type": "dns", "target": "h.example", "interval": 30, "labels": {"a": "\u{0}"}});
    check_refused(judged(&[], Some(QUOTA), &[add(zero)], false), ErrorCode::Invalid, &["labels.a"]);
    let many: Vec<CheckChange> = (0..=CHANGES_MOST).map(|_| add(json!({}))).collect();
    check_refused(judged(&[], Some(QUOTA), &many, false), ErrorCode::Invalid, &["5001 changes at once"]);
    let error = judged(&[], Some(QUOTA), &many[1..], false).unwrap_err();
    assert!(
        error.message.len() <= MESSAGE_BYTES_MOST + 100 && error.message.contains("more"),
        "{}",
        error.message.len()
    );
}

#[test]
fn a_plan_is_told_with_its_numbers() {
    let over = |names: &[&str], changes: &[CheckChange], parts: &[&str]| {
        check_refused(judged(names, Some(QUOTA), changes, false), ErrorCode::OverQuota, parts);
    };
    over(&["a", "b", "c"], &[add(definition("d"))], &["allows 3 checks, there are 3, and there would be 4"]);
    over(
        &[],
        &[add(json!({"name": "x", "type": "tcp", "target": "h:1", "interval": 5, "site": "oslo"}))],
        &["interval of 5 s"],
    );
    let wide =
        json!({"name": "x", "type": "tcp", "target": "h:1", "interval": 60, "sites": ["oslo", "lima", "bergen"]});
    over(&[], &[add(wide.clone())], &["3 vantages: the plan allows 2 at most"]);
    let often =
        json!({"name": "x", "type": "tcp", "target": "h:1", "interval": 10, "sites": ["oslo", "lima"], "vantages": 2});
    over(
        &["a", "b"],
        &[add(often), edit("a", json!({"interval": 10})), edit("b", json!({"interval": 10}))],
        &["allows 20 runs a minute at all vantages, there are 4, and there would be 24"],
    );
    check_refused(judged(&[], None, &[add(definition("a"))], false), ErrorCode::OverQuota, &["says nothing of checks"]);
    // What was too much before may stay, become less, and be paused.
    let small = Some(Quota { checks: 1, runs_per_minute: 1, ..QUOTA });
    let less = [CheckChange::Remove { name: "a".to_owned() }, CheckChange::Pause { name: "b".to_owned() }];
    assert_eq!(acts(judged(&["a", "b", "c"], small, &less, false)), ["a removed 0", "b paused 5"]);
}
