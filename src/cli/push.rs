//! `mailchime push USER`: a test push by the running mailchime, or why there would be none.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::ask::ask;
use super::table::{short, table, told, word};
use super::{CommandFailure, Configured, not_empty, say, watchers};
use crate::push::dispatcher::OWN_FAULT;

#[derive(Debug, clap::Args)]
pub(super) struct PushOptions {
    /// Whose subscriptions: the login name
    #[arg(value_parser = not_empty())]
    user: String,

    /// Tell of this mailbox, to the subscriptions that are for it
    #[arg(long, value_name = "NAME", value_parser = not_empty())]
    mailbox: Option<String>,

    /// Send nothing; say for each subscription whether new mail would be pushed now, and why not
    #[arg(long)]
    explain: bool,

    /// JSON, for machines
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    configured: Configured,
}

pub(super) fn run(options: &PushOptions) -> Result<(), CommandFailure> {
    let mut parameters = vec![("user", &*options.user)];
    parameters.extend(options.mailbox.as_deref().map(|mailbox| ("mailbox", mailbox)));
    let (method, path) = match options.explain {
        true => (Method::GET, "/explain"),
        false => (Method::POST, "/push"),
    };
    let answer = ask(&options.configured, method, path, &parameters)?;
    let devices = answer["subscriptions"].as_array().map(Vec::as_slice).unwrap_or_default();
    match (options.json, options.explain) {
        (true, _) => say(&answer),
        (false, true) => explain(&answer, devices),
        (false, false) => tested(devices),
    }
    let well = if options.explain { "would_push" } else { "accepted" };
    match devices.iter().filter(|device| device[well] != true).count() {
        _ if devices.is_empty() => Err(CommandFailure::Failed(format!(
            "{} has no subscription that counts: an iPhone subscribes when Mail is opened with Push switched \
             on, other clients subscribe by [api], and [[webhook]] by itself",
            options.user
        ))),
        0 => Ok(()),
        failed if options.explain => Err(CommandFailure::Failed(format!(
            "{failed} of {} would not be pushed now",
            devices.len()
        ))),
        failed => Err(CommandFailure::Failed(format!("{failed} of {} got no push", devices.len()))),
    }
}

fn tested(devices: &[Value]) {
    let row = |device: &Value| {
        let took = device["seconds"].as_f64().unwrap_or_default();
        let [transport, endpoint, app, outcome, id, detail] =
            ["transport", "endpoint", "app", "outcome", "message_id", "detail"]
                .map(|key| word(&device[key]));
        vec![transport, endpoint, app, outcome, format!("{took} s"), id, detail]
    };
    if !devices.is_empty() {
        let rows: Vec<_> = devices.iter().map(row).collect();
        let head = ["TRANSPORT", "ENDPOINT", "APP", "OUTCOME", "TIME", "MESSAGE ID", "DETAIL"];
        say(table(&head, &rows));
    }
}

/// What comes of a failure by its own fault.
fn own_fault(device: &Value) -> String {
    match device["own_fault"].as_u64().unwrap_or_default() {
        0 => String::new(),
        counted => {
            let left = short(OWN_FAULT.saturating_sub(Duration::from_millis(counted)));
            format!(" by its own fault; mailchime removes it after {left} more of that")
        }
    }
}

fn explain(answer: &Value, devices: &[Value]) {
    let [here, watched_by] = ["node", "watched_by"].map(|key| word(&answer[key]));
    match &answer["watcher"] {
        Value::Null if answer["watched_by"].is_string() && watched_by != here => say(format_args!(
            "watcher: at node {watched_by}, which alone knows what it is about to push; this is node \
             {here}, which knows of the devices only what is in the database"
        )),
        Value::Null => say("watcher: none, so no change is seen"),
        watcher => say(format_args!("watcher: {}", watchers::line(watcher))),
    }
    let (watcher, mut waits) = (&answer["watcher"], false);
    if let ("watching", Some(why)) = (word(&watcher["state"]).as_str(), watcher["reason"].as_str())
    {
        say(format_args!("a look at the account waits: {}", why.escape_debug()));
        waits = true;
    }
    for device in devices {
        let [transport, endpoint, app] =
            ["transport", "endpoint", "app"].map(|key| word(&device[key]));
        let [registered, pushed] = ["registered_at", "pushed_at"].map(|key| told(&device[key]));
        say(format_args!(
            "{transport} {endpoint} {app}: registered {registered}, last push {pushed}"
        ));
        for (what, key) in [("registered for", "mailboxes"), ("a push is owed for", "owed")] {
            let names: Vec<_> = device[key].as_array().into_iter().flatten().map(word).collect();
            if !names.is_empty() {
                say(format_args!("    {what}: {}", names.join(", ")));
            }
        }
        if let Some(kind) = device["failing_kind"].as_str() {
            let (since, kind) = (told(&device["failing_since"]), kind.escape_debug());
            say(format_args!("    its pushes fail since {since}: {kind}{}", own_fault(device)));
        }
        if device["preview"] == true {
            say("    its pushes say who sent new mail, as [push] preview has it");
        }
        match device["obstacles"].as_array().map(Vec::as_slice).unwrap_or_default() {
            [] => say(match waits {
                true => "    new mail would be pushed when it is seen; a look waits, as above",
                false => "    new mail would be pushed now",
            }),
            obstacles => {
                for obstacle in obstacles {
                    say(format_args!("    not now: {}", word(obstacle)));
                }
            }
        }
    }
}
