//! `mailchime health`: whether the mailchime that runs is well, as an exit code.

use hyper::Method;
use serde_json::Value;

use super::ask::{ask, ask_whether_it_answers};
use super::table::word;
use super::{CommandFailure, Configured, not_empty, say};

#[derive(Debug, clap::Args)]
pub(super) struct HealthOptions {
    /// Also ask its parts, such as the database, and fail if one of them does not work; without this option
    /// mailchime only has to answer
    #[arg(long)]
    ready: bool,

    /// Do not ask this part; may be given several times
    #[arg(long, value_name = "PART", requires = "ready", value_parser = not_empty())]
    exclude: Vec<String>,

    #[command(flatten)]
    configured: Configured,
}

pub(super) fn run(options: &HealthOptions) -> Result<(), CommandFailure> {
    if !options.ready {
        ask_whether_it_answers(&options.configured)?;
        say("mailchime answers");
        return Ok(());
    }
    let excluded: Vec<_> = options.exclude.iter().map(|part| ("exclude", part.as_str())).collect();
    let answer = ask(&options.configured, Method::GET, "/readyz", &excluded)?;
    for (part, verdict) in answer["parts"].as_object().into_iter().flatten() {
        say(line(part, verdict));
    }
    match answer["ok"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(CommandFailure::Failed("not ready".to_owned())),
    }
}

fn line(part: &str, verdict: &Value) -> String {
    match verdict["ok"].as_bool() {
        Some(true) => match verdict["note"].as_str() {
            Some(note) => format!("{part}: ok, but {}", note.escape_debug()),
            None => format!("{part}: ok"),
        },
        _ => format!("{part}: FAILED: {}", word(&verdict["why"])),
    }
}
