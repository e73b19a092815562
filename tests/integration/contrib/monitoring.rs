//! Prometheus alerts and the Grafana dashboard name metrics that there are, and Prometheus takes them.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::{ends, file, program, succeeds, text};

const ALERTS: &str = "contrib/prometheus/alerts.yml";
const DASHBOARD: &str = "contrib/grafana/mailchime.json";

/// How the names of metrics begin.
const PREFIXES: [&str; 2] = ["mailchime_", "process_"];

/// What `docs/metrics.md` says of a metric.
struct Listed {
    kind: String,
    labels: String,
    meaning: String,
}

fn listed() -> BTreeMap<String, Listed> {
    let document = text("docs/metrics.md");
    let rows = document
        .lines()
        .filter(|line| PREFIXES.iter().any(|prefix| line.starts_with(&format!("| `{prefix}"))));
    let listed: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [kind, labels, meaning] = [1, 2, 3].map(|at| cells[at].to_owned());
            (cells[0].trim_matches('`').to_owned(), Listed { kind, labels, meaning })
        })
        .collect();
    assert!(listed.len() > 15, "only {} metrics are found", listed.len());
    listed
}

/// The expressions of the dashboard, and that of its variable.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// What is wrong with the metrics that a query names, their labels and the values of those.
fn faults(query: &str, listed: &BTreeMap<String, Listed>) -> Vec<String> {
    let mut faults = Vec::new();
    let starts = PREFIXES.iter().flat_map(|prefix| query.match_indices(*prefix));
    for (at, _) in starts {
        let rest = &query[at..];
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = &rest[..rest.find(|c| !word(c)).unwrap_or(rest.len())];
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let metric = listed
            .get(name)
            .or_else(|| listed.get(histogram?).filter(|metric| metric.kind == "histogram"));
        let Some(metric) = metric else {
            faults.push(format!("there is no metric {name}"));
            continue;
        };
        let Some(selector) = rest[name.len()..].strip_prefix('{') else { continue };
        for matcher in selector.split('}').next().unwrap().split(',') {
            let (label, values) = matcher.split_once('=').unwrap();
            let label = label.trim().trim_end_matches('!');
            if ["instance", "job"].contains(&label) {
                continue;
            }
            if !metric.labels.contains(&format!("`{label}`")) {
                faults.push(format!("{name} has no label {label}"));
            }
            for value in values.trim_matches(['~', '"']).split('|') {
                // The limits are keys of the configuration.
                let known = match label {
                    "limit" => text("proxy.toml").contains(&format!("#{value} = ")),
                    _ => metric.meaning.contains(&format!("`{value}`")),
                };
                if !known {
                    faults.push(format!("{name} has no {label} {value}"));
                }
            }
        }
    }
    faults
}

#[test]
fn alerts_and_dashboard_name_metrics_that_there_are() {
    let listed = listed();
    let alerts = text(ALERTS);
    let alerts: Vec<_> =
        alerts.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let dashboard: Value = serde_json::from_str(&text(DASHBOARD)).unwrap();
    let mut queries = expressions(&dashboard);
    queries.push(dashboard["templating"].to_string());
    assert!(queries.len() > 20, "only {} queries are found", queries.len());
    queries.push(alerts.join("\n"));
    let faults: Vec<_> = queries.iter().flat_map(|query| faults(query, &listed)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
    let shown = queries.join("\n");
    let missing: Vec<_> = listed.keys().filter(|name| !shown.contains(*name)).collect();
    assert!(missing.len() < listed.len() / 3, "neither alert nor panel: {missing:?}");
}

#[test]
fn a_query_with_a_wrong_name_is_found() {
    let listed = listed();
    for (query, expected) in [
        ("rate(mailchime_pushes_total{outcome=~\"refused|gone\"}[5m])", None),
        ("mailchime_push_latency_seconds_bucket", None),
        ("mailchime_sessions_bucket", Some("there is no metric mailchime_sessions_bucket")),
        ("rate(mailchime_pushes[5m])", Some("there is no metric mailchime_pushes")),
        ("mailchime_sessions{how=\"x\"}", Some("mailchime_sessions has no label how")),
        (
            "mailchime_pushes_total{instance=~\"a\",outcome!=\"refuse\"}",
            Some("mailchime_pushes_total has no outcome refuse"),
        ),
        (
            "mailchime_limits_hit_total{limit=\"x\"}",
            Some("mailchime_limits_hit_total has no limit x"),
        ),
    ] {
        let found = faults(query, &listed);
        assert_eq!(found.first().map(String::as_str), expected, "{query}");
    }
}

#[test]
fn prometheus_takes_the_alerts_and_they_fire_at_their_faults() {
    let test = "contrib::monitoring::prometheus_takes_the_alerts_and_they_fire_at_their_faults";
    let promtool = || program(test, "promtool", "promtool");
    let Some(mut check) = promtool() else { return };
    let said = succeeds(check.args(["check", "rules", "--lint-fatal"]).arg(file(ALERTS)));
    assert!(said.contains("16 rules found"), "{said}");
    let tests = file("contrib/prometheus/alerts_test.yml");
    let said = succeeds(promtool().unwrap().args(["test", "rules"]).arg(&tests));
    assert!(said.contains("SUCCESS"), "{said}");
    // An alert that never fires fails them.
    let folder = tempfile::tempdir().unwrap();
    let broken = text(ALERTS).replace("mailchime_exposed_files > 0", "mailchime_exposed_files > 9");
    fs::write(folder.path().join("alerts.yml"), broken).unwrap();
    let copy = folder.path().join("alerts_test.yml");
    fs::copy(tests, &copy).unwrap();
    let (succeeded, said) = ends(promtool().unwrap().args(["test", "rules"]).arg(copy));
    assert!(!succeeded && said.contains("MailchimeSecretsExposed"), "{said}");
}

/// As rules, since no other command of Prometheus reads expressions without a server.
#[test]
fn prometheus_takes_the_queries_of_the_dashboard() {
    let test = "contrib::monitoring::prometheus_takes_the_queries_of_the_dashboard";
    let Some(mut promtool) = program(test, "promtool", "promtool") else { return };
    let dashboard: Value = serde_json::from_str(&text(DASHBOARD)).unwrap();
    let rules: Vec<_> = expressions(&dashboard)
        .iter()
        .enumerate()
        .map(|(at, query)| {
            let expr = query.replace("$__rate_interval", "5m");
            serde_json::json!({ "record": format!("query:{at}"), "expr": expr })
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.json");
    let groups = serde_json::json!({ "groups": [{ "name": "queries", "rules": rules }] });
    fs::write(&path, groups.to_string()).unwrap();
    let said = succeeds(promtool.args(["check", "rules"]).arg(path));
    assert!(said.contains(&format!("{} rules found", rules.len())), "{said}");
}
