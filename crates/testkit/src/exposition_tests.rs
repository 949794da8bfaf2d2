use super::*;

const GOOD: &str = "\
# HELP a_things Things, \\\"done\\\".
# TYPE a_things counter
a_things_total{lane=\"x\",kind=\"say \\\"hi\\\"\\n\"} 3
a_things_total{lane=\"y\",kind=\"\"} 0
# HELP a_free_bytes Room.
# TYPE a_free_bytes gauge
# UNIT a_free_bytes bytes
a_free_bytes -1.5
# HELP a_took_seconds Took.
# TYPE a_took_seconds histogram
# UNIT a_took_seconds seconds
a_took_seconds_sum 0.5
a_took_seconds_count 2
a_took_seconds_bucket{le=\"0.1\"} 1
a_took_seconds_bucket{le=\"1.0\"} 2
a_took_seconds_bucket{le=\"+Inf\"} 2
# EOF
";

#[test]
fn a_page_is_read() {
    let page = Exposition::parse(GOOD).unwrap();
    let kinds: Vec<_> = page.families.iter().map(|family| (family.name.as_str(), family.kind)).collect();
    let expected = [("a_things", Kind::Counter), ("a_free_bytes", Kind::Gauge), ("a_took_seconds", Kind::Histogram)];
    assert_eq!(kinds, expected);
    assert_eq!(page.families[0].help, "Things, \"done\".");
    assert_eq!(page.families[1].unit.as_deref(), Some("bytes"));
    assert_eq!(page.value("a_things_total", &[("kind", "say \"hi\"\n"), ("lane", "x")]), Some(3.0));
    assert_eq!(page.value("a_things_total", &[("lane", "x")]), None, "all labels count");
    assert_eq!(page.value("a_free_bytes", &[]), Some(-1.5));
    assert_eq!(page.value("a_took_seconds_bucket", &[("le", "1.0")]), Some(2.0));
    assert_eq!(Exposition::parse("# EOF\n").unwrap().families, []);
}

fn check(change: (&str, &str), rule: &str) {
    assert!(GOOD.contains(change.0), "{:?} is not in the page", change.0);
    let refused = Exposition::parse(&GOOD.replacen(change.0, change.1, 1)).expect_err(change.1);
    assert!(refused.to_string().contains(rule), "{change:?}: {refused}");
}

#[test]
fn what_the_standard_forbids_is_refused() {
    check(("# EOF\n", ""), "ends in");
    check(("# EOF\n", "# EOF"), "ends in");
    check(("# EOF\n", "# EOF\n\n"), "ends in");
    check(("a_free_bytes -1.5\n", "a_free_bytes -1.5\n\n"), "a name and a value");
    check(("a_free_bytes -1.5", "a_free_bytes  -1.5"), "one number");
    check(("a_free_bytes -1.5", "a_free_bytes -1.5 1700000000"), "one number");
    check(("a_free_bytes -1.5", "a_free_bytes -1.5\r"), "one number");
    check(("a_free_bytes -1.5", "a_free_bytes inf"), "one number");
    check(("a_free_bytes -1.5", "b_free_bytes -1.5"), "suffix of its type");
    check(("a_free_bytes -1.5", "a_free_bytes_total 1"), "suffix of its type");
    check(("a_free_bytes -1.5", "a_free_bytes 1\na_free_bytes 1"), "there once");
    check(("a_free_bytes -1.5\n", ""), "a type and samples");
    check(("# TYPE a_free_bytes gauge\n", ""), "a type and samples");
    check(("# TYPE a_free_bytes gauge", "# TYPE a_free_bytes gauge\n# TYPE a_free_bytes gauge"), "each is said once");
    check(("# UNIT a_free_bytes bytes", "# UNIT a_free_bytes bytes\n# UNIT a_free_bytes bytes"), "each is said once");
    check(("a_things_total{lane=\"y\"", "a_things{lane=\"y\""), "suffix of its type");
    check(("a_things_total{lane=\"y\",kind=\"\"} 0", "a_things_total{lane=\"y\"} 0"), "same label names");
    check(("lane=\"y\",kind=\"\"", "lane=\"y\",lane=\"\""), "each name once");
    check(("lane=\"y\",kind=\"\"", "lane=\"y\",,kind=\"\""), "each name once");
    check(("lane=\"y\",kind=\"\"", "lane=\"y\" kind=\"\""), "each name once");
    check(("lane=\"y\"", "lane=y"), "each name once");
    check(("lane=\"y\"", "la-ne=\"y\""), "each name once");
    check(("lane=\"y\"", "lane=\"\\y\""), "each name once");
    check(("} 3", "} -3"), "not negative");
    check(("} 3", "} NaN"), "not negative");
    check(("# TYPE a_things counter", "# TYPE a_things gaugehistogram"), "a type is");
    check(("# UNIT a_free_bytes bytes", "# UNIT a_free_bytes seconds"), "a unit ends the name");
    check(("# HELP a_free_bytes", "# HELP a_things"), "before the samples");
    check(("# HELP a_free_bytes Room.\n", ""), "begins with its HELP");
    check(("# TYPE a_took", "# NOTE a_took"), "a type is");
    check(("Things, \\\"", "Things, \\x"), "a backslash escapes");
    check(("le=\"1.0\"", "le=\"0.05\""), "buckets grow");
    check(("le=\"1.0\"} 2", "le=\"1.0\"} 0"), "buckets grow");
    check(("le=\"+Inf\"} 2", "le=\"+Inf\"} 3"), "holds the count");
    check(("a_took_seconds_bucket{le=\"+Inf\"} 2\n", ""), "buckets grow up to +Inf");
    check(("le=\"1.0\"", "le=\"one\""), "ends at a number");
    check(("{le=\"1.0\"}", ""), "says where it ends");
    check(("a_took_seconds_sum 0.5\n", ""), "a count and a sum");
}

#[test]
fn the_samples_of_one_histogram_stand_together() {
    let child = |lane: &str| {
        let sample = |suffix: &str| format!("h_{suffix}{{lane=\"{lane}\"}} 0\n");
        [sample("sum"), sample("count"), format!("h_bucket{{lane=\"{lane}\",le=\"+Inf\"}} 0\n")]
    };
    let page = |lines: Vec<String>| format!("# HELP h H.\n# TYPE h histogram\n{}# EOF\n", lines.concat());
    let (mut lines, other) = (child("a").to_vec(), child("b"));
    lines.extend(other);
    assert!(Exposition::parse(&page(lines.clone())).is_ok());
    lines.swap(2, 3);
    assert!(Exposition::parse(&page(lines)).unwrap_err().to_string().contains("stand together"));
}

#[test]
fn a_family_is_not_taken_up_again() {
    let again = GOOD.replace("# EOF", "# HELP a_free_bytes Room.\n# TYPE a_free_bytes gauge\na_free_bytes 1\n# EOF");
    assert!(Exposition::parse(&again).unwrap_err().to_string().contains("one group of lines"));
}
