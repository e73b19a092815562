//! `mailchime watchers`: what the running mailchime watches.

use hyper::Method;
use serde_json::Value;

use super::ask::ask;
use super::table::{table, told, word};
use super::{Configured, Failure, not_empty, say};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only this user's
    #[arg(long, value_parser = not_empty())]
    user: Option<String>,

    /// JSON, for machines
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    configured: Configured,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let user = options.user.as_deref().map(|user| ("user", user));
    let answer = ask(&options.configured, Method::GET, "/watchers", user.as_slice())?;
    if options.json {
        say(answer);
        return Ok(());
    }
    say(nodes(&answer));
    let watchers = answer["watchers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = watchers.iter().map(row).collect();
    say(table(&["USER", "STATE", "MODE", "SINCE", "LAST EVENT", "NEXT TRY", "REASON"], &rows));
    Ok(())
}

/// Who was asked, and whom else to ask.
fn nodes(answer: &Value) -> String {
    let here = word(&answer["node"]);
    let nodes: Vec<_> = answer["nodes"].as_array().into_iter().flatten().map(word).collect();
    match nodes.into_iter().filter(|name| *name != here).collect::<Vec<_>>() {
        others if others.is_empty() => format!("node {here}"),
        others => format!("node {here}; other accounts are watched by {}", others.join(", ")),
    }
}

fn row(watcher: &Value) -> Vec<String> {
    let [account, state, mode, reason] =
        ["account", "state", "mode", "reason"].map(|key| word(&watcher[key]));
    let [since, last_event, next_try] =
        ["since", "last_event_at", "next_try_at"].map(|key| told(&watcher[key]));
    vec![account, state, mode, since, last_event, next_try, reason]
}

/// A watcher in one line.
pub(super) fn line(watcher: &Value) -> String {
    let mut line = word(&watcher["state"]);
    if watcher["mode"].is_string() {
        line.push_str(&format!(" ({})", word(&watcher["mode"])));
    }
    line.push_str(&format!(" since {}", told(&watcher["since"])));
    if watcher["next_try_at"].is_number() {
        line.push_str(&format!(", next try {}", told(&watcher["next_try_at"])));
    }
    if watcher["reason"].is_string() {
        line.push_str(&format!(": {}", word(&watcher["reason"])));
    }
    line
}
