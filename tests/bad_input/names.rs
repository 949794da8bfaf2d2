//! Names and targets on the command line.

use std::process::Output;

use bulkhead_testkit::TestDeployment;

use crate::program::{run, search_path};

const INVALID: i32 = 4;
const REFUSED: i32 = 7;
const SHOWN_MOST: usize = 300;
const RULE: &str = "1 to 40 characters of a-z, 0-9 and '-'";
const TARGET_RULE: &str = "tcp://host:port";

/// What is wrong with a refusal that should have this code, hold `parts`, be short, and move no cursor.
fn find_faults(output: &Output, code: i32, parts: &[&str]) -> Vec<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let shown: String = said.chars().take(SHOWN_MOST).collect();
    let mut faults = Vec::new();
    if output.status.code() != Some(code) {
        faults.push(format!("exit code {:?}, not {code}: {shown:?}", output.status.code()));
    }
    let missing = parts.iter().filter(|part| !said.contains(**part));
    faults.extend(missing.map(|part| format!("{part:?} is missing in: {shown:?}")));
    if said.chars().any(|character| character.is_control() && character != '\n') {
        faults.push(format!("a control character of the value is printed as it is: {shown:?}"));
    }
    if said.contains(&"x".repeat(200)) {
        faults.push(format!("the value is not shortened: {shown:?}"));
    }
    if !output.stdout.is_empty() {
        faults.push(format!("it prints {:?}", String::from_utf8_lossy(&output.stdout)));
    }
    faults
}

#[tokio::test]
async fn bad_names_and_targets_are_refused_before_anything_is_asked() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home").display().to_string();
    let path = search_path()?;
    let long = "x".repeat(300);
    let mut faults = Vec::new();
    let names = [
        ("a.b", "a.b"),
        ("*", "*"),
        (">", ">"),
        ("a b", "a b"),
        ("", "\"\""),
        ("Acme", "Acme"),
        ("-acme", "-acme"),
        ("acme-", "acme-"),
        ("../acme", "../acme"),
        ("{{name()}}", "{{name()}}"),
        ("acme\r\nPUB x 0\r\n\r\n", "acme\\r\\nPUB x 0"),
        ("acme\u{1b}[2J", "acme\\u{1b}[2J"),
        (long.as_str(), "xxxxxxxxxxxxxxxxxxxx"),
        // Cyrillic а, full-width a, a zero-width joiner.
        ("\u{430}cme", "\u{430}cme"),
        ("\u{ff41}cme", "\u{ff41}cme"),
        ("ac\u{200d}me", "ac\\u{200d}me"),
    ];
    for (name, shown) in names {
        let option = format!("--tenant={name}");
        let output = run("bulkhead", &["--home", &home, "status", &option], &path).await?;
        faults.extend(find_faults(&output, INVALID, &[shown, RULE]));
    }
    for name in ["core", "sys", "auth", "sent", "ops", "platform", "intake", "intake-1"] {
        let output = run("bulkhead", &["--home", &home, "status", "--tenant", name], &path).await?;
        faults.extend(find_faults(&output, INVALID, &[name, "reserved"]));
    }
    let long = format!("tcp://{long}:1:2");
    let targets = [
        ("127.0.0.1:22", "127.0.0.1:22"),
        ("tcp://host", "tcp://host"),
        ("tcp://host:99999", "tcp://host:99999"),
        ("ftp://host", "ftp://host"),
        ("http:///x", "http:///x"),
        ("http://host:99999/", "http://host:99999/"),
        ("https://user:secret@host/", "https://"),
        ("tcp://ho_st!:22", "tcp://ho_st!:22"),
        ("dns://a..example", "dns://a..example"),
        ("icmp://*", "icmp://*"),
        ("tcp://a\r\nb:1", "tcp://a\\r\\nb:1"),
        ("dns://\u{430}.example", "dns://\u{430}.example"),
        (long.as_str(), "tcp://xxxxxxxxxxxx"),
    ];
    for (target, shown) in targets {
        let output = run("bulkhead", &["--home", &home, "up", "--target", target], &path).await?;
        faults.extend(find_faults(&output, INVALID, &[shown, TARGET_RULE]));
    }
    if folder.path().join("home").exists() {
        faults.push("a refused command has made a state folder".to_owned());
    }
    // Without a platform, the error says how to get one.
    let output = run("bulkhead", &["--home", &home, "status"], &path).await?;
    faults.extend(find_faults(&output, INVALID, &["profiles/ops.toml", "bulkhead up"]));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// What only core can refuse: names of nobody, and of somebody else.
pub(crate) async fn check_names_core_refuses(deployment: &TestDeployment) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for command in [["status"].as_slice(), &["results", "list"], &["poller", "list"], &["tenant", "list"]] {
        let asked = [command, &["--tenant", "nobody-inc"]].concat();
        faults.extend(find_faults(&deployment.bulkhead(&asked).await?, INVALID, &["nobody-inc"]));
        let profile = deployment.up.layout.profile("acme-corp-admin").display().to_string();
        let asked = [command, &["--profile", &profile, "--tenant", "xyz-inc"]].concat();
        let refused = deployment.bulkhead(&asked).await?;
        faults.extend(find_faults(&refused, REFUSED, &[]));
        // Whether a name exists is nobody else's business: the same answer for one that does not.
        let asked = [command, &["--profile", &profile, "--tenant", "nobody-inc"]].concat();
        let unknown = deployment.bulkhead(&asked).await?;
        let text = |output: &Output| String::from_utf8_lossy(&output.stderr).replace("nobody-inc", "xyz-inc");
        assert_eq!((unknown.status.code(), text(&unknown)), (Some(REFUSED), text(&refused)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
