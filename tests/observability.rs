//! The dashboard and the alert rules of `deploy/observability/` ask only for what Lictor exposes, and
//! nothing that it exposes is missing from them and from the docs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use lictor::metrics::{KindLabel, Metrics, OperationLabels, RequestLabels};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use regex::Regex;
use serde_json::Value;

/// The labels that Prometheus adds to whatever it scrapes, and that of a histogram's buckets.
const ALWAYS: [&str; 3] = ["job", "instance", "le"];

/// What a scrape shows once each counter was counted: the labels of each series, by its name.
fn exposed() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let kind = KindLabel { kind: "instance" };
    metrics.owned.get_or_create(&kind).set(1);
    metrics.drift.get_or_create(&kind).inc();
    metrics.watch_restarts.get_or_create(&kind).inc();
    let operation = OperationLabels {
        kind: "instance",
        verb: "create",
        outcome: "ok",
    };
    metrics.operations.get_or_create(&operation).inc();
    let request = RequestLabels {
        endpoint: "txn",
        code: 200,
    };
    metrics.requests.get_or_create(&request).inc();
    let mut text = String::new();
    encode(&mut text, &registry)?;
    let series = Regex::new(r"(?m)^([a-z_]+)(?:\{(.*)\})? ")?;
    let label = Regex::new(r#"([a-z_]+)=""#)?;
    let mut exposed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for found in series.captures_iter(&text) {
        let labels = found.get(2).map_or("", |labels| labels.as_str());
        let labels = label.captures_iter(labels).map(|found| found[1].to_owned());
        exposed
            .entry(found[1].to_owned())
            .or_default()
            .extend(labels);
    }
    Ok(exposed)
}

fn read(path: &str) -> Result<String> {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).with_context(|| path)
}

/// The expressions of the dashboard with the template of their legend.
fn of_dashboard() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(&read("deploy/observability/dashboard.json")?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut found = Vec::new();
    for target in panels
        .iter()
        .filter_map(|it| it["targets"].as_array())
        .flatten()
    {
        let expression = target["expr"].as_str().context("a target without expr")?;
        let legend = target["legendFormat"].as_str().unwrap_or_default();
        found.push((expression.to_owned(), legend.to_owned()));
    }
    Ok(found)
}

/// The expressions of the alerts with the texts that are shown for them.
fn of_alerts() -> Result<Vec<(String, String)>> {
    let alerts: Value = serde_saphyr::from_str(&read("deploy/observability/alerts.yaml")?)?;
    let groups = alerts["groups"].as_array().context("no groups")?;
    let mut found = Vec::new();
    for rule in groups
        .iter()
        .filter_map(|it| it["rules"].as_array())
        .flatten()
    {
        let name = rule["alert"].as_str().context("a rule without a name")?;
        let expression = rule["expr"].as_str().context("a rule without expr")?;
        for text in ["summary", "description"] {
            ensure!(
                rule["annotations"][text].is_string(),
                "{name} has no {text}"
            );
        }
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        ensure!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity:?}"
        );
        found.push((expression.to_owned(), rule["annotations"].to_string()));
    }
    Ok(found)
}

/// That an expression, and the text beside it, use what is there.
fn is_answered(
    (expression, text): &(String, String),
    exposed: &BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    let metric = Regex::new(r"\b(?:lictor|process)_[a-z_]+")?;
    let mut labels: BTreeSet<&str> = ALWAYS.into();
    for name in metric.find_iter(expression) {
        let of = exposed.get(name.as_str());
        let of = of.with_context(|| format!("{} is not exposed: {expression}", name.as_str()))?;
        labels.extend(of.iter().map(String::as_str));
    }
    ensure!(
        labels.len() > ALWAYS.len() || metric.is_match(expression),
        "{expression}"
    );
    let grouped = Regex::new(r"\b(?:by|on) \(([a-z_, ]+)\)")?;
    let matched = Regex::new(r"([a-z_]+)(?:=~|!~|!=|=)")?;
    let shown = Regex::new(r"\{\{ ?(?:\$labels\.)?([a-z_]+)")?;
    let grouped = grouped.captures_iter(expression);
    let asked = grouped.flat_map(|found| found.get(1).map_or("", |it| it.as_str()).split(", "));
    let matched = matched
        .captures_iter(expression)
        .filter_map(|found| found.get(1));
    let shown = shown.captures_iter(text).filter_map(|found| found.get(1));
    let asked = asked.chain(matched.chain(shown).map(|it| it.as_str()));
    for label in asked {
        ensure!(
            labels.contains(label),
            "no label {label}: {expression}, {text}"
        );
    }
    let opened = expression.matches(['(', '{', '[']).count();
    ensure!(
        opened == expression.matches([')', '}', ']']).count(),
        "{expression}"
    );
    Ok(())
}

#[test]
fn the_dashboard_and_the_alerts_ask_only_for_what_is_exposed() -> Result<()> {
    let exposed = exposed()?;
    let dashboard = of_dashboard()?;
    let alerts = of_alerts()?;
    ensure!(dashboard.len() > 20 && alerts.len() > 10);
    for asked in dashboard.iter().chain(&alerts) {
        is_answered(asked, &exposed)?;
    }
    Ok(())
}

#[test]
fn every_metric_is_on_the_dashboard_and_in_the_docs() -> Result<()> {
    let dashboard = read("deploy/observability/dashboard.json")?;
    let docs = read("docs/operations.md")?;
    for name in exposed()?.keys() {
        let mut family = ["_bucket", "_sum", "_count"].iter();
        let family = family.find_map(|part| name.strip_suffix(part));
        let family = family.unwrap_or(name);
        ensure!(dashboard.contains(family), "the dashboard lacks {family}");
        ensure!(docs.contains(family), "docs/operations.md lacks {family}");
    }
    Ok(())
}
