//! The status page: what an operator wants to see first, as HTML without a script.
//!
//! It only shows. Accounts are listed while they are few, and counted and searched for otherwise. Names of
//! accounts and mailboxes, and what servers said, are strangers' words: `maud` escapes all text, and
//! [`stranger`] leaves nothing in them that is not seen or turns the direction of writing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::Context;
use super::overview::{LookedUp, Overview};
use crate::model::{Timestamp, one_line};

/// A page as it is served, for this overview and perhaps the account that was asked for.
pub(super) fn page(context: &Context, overview: &Overview, found: Option<&LookedUp>) -> String {
    let asked = found.map(|found| &*found.user).unwrap_or_default();
    let title = match overview.warnings.len() {
        0 => "mailchime".to_owned(),
        warnings => format!("({warnings}) mailchime"),
    };
    let body = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/status.css";
            }
            body {
                header {
                    h1 { img src="/icon.svg" alt="" width="32" height="32"; "mailchime" }
                    p.quiet {
                        "Node " (stranger(word(&overview.status["node"])))
                        ", version " (env!("CARGO_PKG_VERSION"))
                        ", started " (from_now(context.started_at.0))
                    }
                }
                main {
                    (warnings(overview))
                    (search(asked))
                    @if let Some(found) = found { (account(found)) }
                    (watching(overview))
                    (subscriptions(overview))
                    (pushes(&overview.status["pushes"]))
                    (certificates(overview))
                    (nodes(&overview.status))
                    (limits(overview))
                }
            }
        }
    };
    body.into_string()
}

fn section(id: &str, title: &str, content: &Markup) -> Markup {
    html! {
        section aria-labelledby=(id) { h2 id=(id) { (title) } (content) }
    }
}

fn warnings(overview: &Overview) -> Markup {
    let content = html! {
        @if overview.warnings.is_empty() {
            p.good { "Nothing needs attention." }
        } @else {
            ul.warnings { @for warning in &overview.warnings { li { (stranger(warning)) } } }
        }
    };
    section("warnings", "Warnings", &content)
}

fn search(asked: &str) -> Markup {
    html! {
        form.search role="search" method="get" action="/" {
            label for="user" { "Look up an account" }
            input #user name="user" type="search" value=(asked) autocapitalize="none" spellcheck="false";
            button type="submit" { "Look up" }
        }
    }
}

/// Who was looked up: how it is watched, and each of its subscriptions.
fn account(found: &LookedUp) -> Markup {
    let content = match &found.answer {
        Err(why) => html! { p.bad { (stranger(why)) } },
        Ok(answer) => html! {
            (watched(answer))
            @let devices = list(&answer["subscriptions"]);
            @if devices.is_empty() { p { "It has no subscription." } }
            (table(&["Service", "Endpoint", "Mailboxes", "Last push", "New mail now"], devices.iter().map(subscription)))
        },
    };
    let title = html! { "Account " (stranger(&found.user)) };
    html! {
        section aria-labelledby="account" { h2 #account { (title) } (content) }
    }
}

fn watched(answer: &Value) -> Markup {
    let watcher = &answer["watcher"];
    if watcher.is_null() {
        return match answer["watched_by"].as_str() {
            Some(node) => html! { p { "The node " (stranger(node)) " watches it: ask there." } },
            None => html! { p { "Nobody watches it." } },
        };
    }
    let rows = std::iter::once(watcher).map(watcher_row);
    html! {
        (table(&WATCHER, rows))
        @for left_out in list(&watcher["left_out"]) {
            p.bad {
                "Without " (stranger(word(&left_out["mailbox"]))) ": " (stranger(word(&left_out["reason"])))
            }
        }
    }
}

/// Most characters of a stranger's text. An account has 255 at most, a warning more.
const LONGEST: usize = 1000;

const WATCHER: [&str; 6] = ["Account", "State", "Since", "Last change", "Next try", "Reason"];

fn watcher_row(watcher: &Value) -> Vec<Markup> {
    let state = match watcher["mode"].as_str() {
        Some(mode) => format!("{} ({mode})", word(&watcher["state"])),
        None => word(&watcher["state"]).to_owned(),
    };
    let [since, changed, next] =
        ["since", "last_event_at", "next_try_at"].map(|key| time(&watcher[key]));
    let good = watcher["state"] == "watching" || watcher["state"] == "starting";
    vec![
        stranger(word(&watcher["account"])),
        html! { span.bad[!good] { (state) } },
        since,
        changed,
        next,
        stranger(watcher["reason"].as_str().unwrap_or_default()),
    ]
}

fn subscription(device: &Value) -> Vec<Markup> {
    let names: Vec<_> =
        list(&device["mailboxes"]).iter().map(|name| stranger(word(name))).collect();
    let obstacles = list(&device["obstacles"]);
    vec![
        html! { (word(&device["transport"])) },
        stranger(word(&device["endpoint"])),
        html! { @for (at, name) in names.iter().enumerate() { @if at > 0 { ", " } (name) } },
        time(&device["pushed_at"]),
        html! {
            @if obstacles.is_empty() { span.good { "is pushed" } }
            @for why in obstacles { span.bad { (stranger(word(why))) } " " }
        },
    ]
}

fn watching(overview: &Overview) -> Markup {
    let content = html! {
        (counts(&overview.watching))
        @if let Some(watchers) = &overview.watchers {
            (table(&WATCHER, watchers.iter().map(watcher_row)))
        } @else {
            p.quiet { "Too many to list. Look up an account above." }
        }
    };
    section("watching", "Watched accounts of this node", &content)
}

fn subscriptions(overview: &Overview) -> Markup {
    let rows = overview.transports.iter().map(|of| {
        let shown = |count: u64| html! { (count) };
        let failed = html! { span.bad[of.failed > 0] { (of.failed) } };
        vec![
            stranger(&of.transport),
            shown(of.active),
            shown(of.pending),
            shown(of.accepted),
            failed,
        ]
    });
    let head = ["Service", "Subscriptions", "Not confirmed", "Pushes accepted", "Pushes failed"];
    let content = html! {
        p.quiet {
            "Accounts of all nodes: " (overview.accounts) ". Pushes are of this node, since its start."
        }
        (table(&head, rows))
    };
    section("subscriptions", "Subscriptions", &content)
}

fn pushes(pushes: &Value) -> Markup {
    let rows = list(pushes).iter().map(|push| {
        let good = push["outcome"] == "accepted";
        vec![
            time(&push["at"]),
            stranger(word(&push["account"])),
            html! { (word(&push["transport"])) " " (stranger(word(&push["endpoint"]))) },
            html! {
                span.good[good].bad[!good] { (word(&push["outcome"])) }
                @if let Some(detail) = push["detail"].as_str() { " " (stranger(detail)) }
            },
            html! { (push["seconds"].as_f64().unwrap_or_default()) " s" },
        ]
    });
    let content = match list(pushes).is_empty() {
        true => html! { p { "None since the start." } },
        false => table(&["When", "Account", "To", "Outcome", "After the change"], rows),
    };
    section("pushes", "Last pushes of this node", &content)
}

fn certificates(overview: &Overview) -> Markup {
    let rows = overview.certificates.iter().map(|certificate| {
        let days = certificate.days();
        let left = match days {
            ..0 => "has expired".to_owned(),
            0 => "less than a day".to_owned(),
            1 => "1 day".to_owned(),
            _ => format!("{days} days"),
        };
        vec![
            html! { (certificate.use_of()) },
            stranger(&certificate.name),
            html! { span.bad[certificate.is_due()] { (left) } },
        ]
    });
    let content = match overview.certificates.is_empty() {
        true => html! { p { "None." } },
        false => table(&["For", "Certificate", "Left"], rows),
    };
    section("certificates", "Certificates", &content)
}

fn nodes(status: &Value) -> Markup {
    let here = word(&status["node"]);
    let content = html! {
        ul {
            @for node in list(&status["nodes"]).iter().map(word) {
                li { (stranger(node)) @if node == here { " (this one)" } }
            }
            @for node in list(&status["gone"]) {
                li { (stranger(word(&node["node"]))) " " span.bad { "gone" } " " (time(&node["at"])) }
            }
        }
    };
    section("nodes", "Nodes that share the accounts", &content)
}

fn limits(overview: &Overview) -> Markup {
    let rows = overview.limits.iter().map(|(key, hits)| vec![html! { (key) }, html! { (hits) }]);
    let content = match overview.limits.is_empty() {
        true => html! { p { "None." } },
        false => table(&["Limit", "Times"], rows),
    };
    section("limits", "Limits reached since the start", &content)
}

// === parts ===

fn counts(counts: &[(&'static str, i64)]) -> Markup {
    html! {
        dl.counts { @for (name, count) in counts { div { dt { (name) } dd { (count) } } } }
    }
}

/// Where there is little room each row is a list, and each cell has its head before it.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<Markup>>) -> Markup {
    html! {
        table {
            thead { tr { @for name in head { th scope="col" { (name) } } } }
            tbody {
                @for row in rows {
                    tr { @for (name, cell) in head.iter().zip(&row) { td data-label=(name) { div { (cell) } } } }
                }
            }
        }
    }
}

/// What a stranger may have chosen: one line of what is seen, whose direction is its own.
fn stranger(text: &str) -> Markup {
    let shown = one_line(text, LONGEST);
    html! { bdi { (shown.as_deref().unwrap_or_default()) } }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A time in milliseconds since 1970, and in full for those who point at it.
fn time(millis: &Value) -> Markup {
    let Some(millis) = millis.as_i64() else { return html! { "-" } };
    let full = Timestamp(millis).rfc3339();
    html! { time datetime=(full) title=(full) { (from_now(millis)) } }
}

/// How far a time is from now, in its largest unit.
fn from_now(millis: i64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs());
    let unit = |time: Duration| match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    };
    match SystemTime::now().duration_since(at) {
        Ok(ago) => format!("{} ago", unit(ago)),
        Err(ahead) => format!("in {}", unit(ahead.duration())),
    }
}
