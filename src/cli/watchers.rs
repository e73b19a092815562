//! `mailchime watchers`: what the running mailchime watches.

use hyper::Method;
use serde_json::Value;

use super::ask::ask;
use super::table::{table, told, word};
use super::{CommandFailure, Configured, not_empty, say};

#[derive(Debug, clap::Args)]
pub(super) struct WatchersOptions {
    /// Only this user's
    #[arg(long, value_parser = not_empty())]
    user: Option<String>,

    /// JSON, for machines
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    configured: Configured,
}

pub(super) fn run(options: &WatchersOptions) -> Result<(), CommandFailure> {
    let user = options.user.as_deref().map(|user| ("user", user));
    let answer = ask(&options.configured, Method::GET, "/watchers", user.as_slice())?;
    if options.json {
        say(answer);
        return Ok(());
    }
    say(nodes(&answer));
    let watchers = answer["watchers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = watchers.iter().map(row).collect();
    say(table(
        &["USER", "STATE", "MODE", "SINCE", "LAST CHANGE", "LAST HINT", "NEXT TRY", "REASON"],
        &rows,
    ));
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
    let [account, state, mode] = ["account", "state", "mode"].map(|key| word(&watcher[key]));
    let reason = match left_out(watcher) {
        None => word(&watcher["reason"]),
        Some(left_out) if watcher["reason"].is_string() => {
            format!("{}; {left_out}", word(&watcher["reason"]))
        }
        Some(left_out) => left_out,
    };
    let [since, last_change, last_hint, next_try] =
        ["since", "last_event_at", "last_hint_at", "next_try_at"].map(|key| told(&watcher[key]));
    vec![account, state, mode, since, last_change, last_hint, next_try, reason]
}

/// The mailboxes that are not watched for now, and why; `None` where there are none.
fn left_out(watcher: &Value) -> Option<String> {
    let mailboxes = watcher["left_out"].as_array().filter(|mailboxes| !mailboxes.is_empty())?;
    let mailboxes = mailboxes.iter().map(|it| {
        let mut text = format!("{} ({}", word(&it["mailbox"]), word(&it["reason"]));
        if it["next_try_at"].is_number() {
            text.push_str(&format!(", next try {}", told(&it["next_try_at"])));
        }
        text + ")"
    });
    Some(format!("without {}", mailboxes.collect::<Vec<_>>().join(", ")))
}

/// A watcher in one line.
pub(super) fn line(watcher: &Value) -> String {
    let mut line = word(&watcher["state"]);
    if watcher["mode"].is_string() {
        line.push_str(&format!(" ({})", word(&watcher["mode"])));
    }
    line.push_str(&format!(" since {}", told(&watcher["since"])));
    if watcher["last_hint_at"].is_number() {
        let at = told(&watcher["last_hint_at"]);
        line.push_str(&format!(", the mail server last told of it {at}"));
    }
    if watcher["next_try_at"].is_number() {
        line.push_str(&format!(", next try {}", told(&watcher["next_try_at"])));
    }
    if watcher["reason"].is_string() {
        line.push_str(&format!(": {}", word(&watcher["reason"])));
    }
    if let Some(left_out) = left_out(watcher) {
        line.push_str(&format!("; {left_out}"));
    }
    line
}
