//! `mailchime replay`: a dialogue against mailchime, or its client's half against a live server.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use super::{CommandFailure, logging, not_empty, runtime, say};
use crate::config::LogFormat;
use crate::demo::dialogue::Dialogue;
use crate::demo::pki::Pki;
use crate::demo::replay::{self, LiveServer, Login, against_mailchime, against_server};
use crate::net::tls;

/// Where the password comes from, unless it is in a file.
const PASSWORD: &str = "MAILCHIME_PASSWORD";

#[derive(Debug, clap::Args)]
pub(super) struct ReplayOptions {
    /// Dialogues; fixtures/README.md in the source tree tells how they are written
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Play the client's half against this server, with TLS
    #[arg(long, value_name = "HOST:PORT", value_parser = not_empty())]
    to: Option<String>,

    /// PEM file with the authorities that may have signed the server's certificate [default: the
    /// system's]
    #[arg(long, value_name = "FILE", requires = "to")]
    ca: Option<PathBuf>,

    /// Speak without TLS: everything, the password included, travels in the clear
    #[arg(long, requires = "to", conflicts_with = "ca")]
    insecure_plain: bool,

    /// Log in as this user, with the password from the environment variable MAILCHIME_PASSWORD or
    /// from --password-file
    #[arg(long, value_name = "NAME", requires = "to", value_parser = not_empty())]
    user: Option<String>,

    /// File whose first line is the password
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

pub(super) fn run(options: &ReplayOptions) -> Result<(), CommandFailure> {
    logging::init(LogFormat::Text, "off").map_err(CommandFailure::failed)?;
    // All are read before any is played.
    let dialogues = options.files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>()?;
    let server = server(options)?;
    let login = login(options)?;
    runtime()?.block_on(play(options, &dialogues, server.as_ref(), login.as_ref()))
}

fn read(path: &Path) -> Result<Dialogue, CommandFailure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| CommandFailure::Usage(format!("{shown}: cannot be read: {error}")))?;
    Dialogue::parse(&text)
        .map_err(|error| CommandFailure::Usage(format!("{shown}:{}: {error}", error.line)))
}

fn server(options: &ReplayOptions) -> Result<Option<LiveServer>, CommandFailure> {
    let Some(to) = &options.to else { return Ok(None) };
    let parts = to.rsplit_once(':').and_then(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Some((host.to_owned(), port.parse::<u16>().ok()?))
    });
    let (host, port) =
        parts.filter(|(host, port)| !host.is_empty() && *port != 0).ok_or_else(|| {
            CommandFailure::Usage(format!(
                "--to {to}: give the server as host:port, [2001:db8::1]:993"
            ))
        })?;
    let tls = if options.insecure_plain {
        None
    } else {
        let config = tls::client(options.ca.as_deref());
        Some(config.map_err(|error| CommandFailure::Usage(error.to_string()))?)
    };
    Ok(Some(LiveServer { host, port, tls }))
}

fn login(options: &ReplayOptions) -> Result<Option<Login>, CommandFailure> {
    let Some(user) = options.user.clone() else { return Ok(None) };
    let password = match &options.password_file {
        Some(path) => {
            let text = std::fs::read(path).map_err(|error| {
                CommandFailure::Usage(format!("{}: cannot be read: {error}", path.display()))
            })?;
            let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
            line.strip_suffix(b"\r").unwrap_or(line).to_vec()
        }
        None => std::env::var(PASSWORD)
            .ok()
            .filter(|password| !password.is_empty())
            .ok_or_else(|| {
                let remedy = "set it to the user's password, or give --password-file";
                CommandFailure::Usage(format!(
                    "the environment variable {PASSWORD} is not set: {remedy}"
                ))
            })?
            .into_bytes(),
    };
    Ok(Some(Login { user, password }))
}

async fn play(
    options: &ReplayOptions,
    dialogues: &[Dialogue],
    server: Option<&LiveServer>,
    login: Option<&Login>,
) -> Result<(), CommandFailure> {
    let colours = logging::colours(std::io::stdout().is_terminal());
    let paint = |colour: &str, text: &str| match colours {
        true => format!("\x1b[{colour}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let pki = Pki::generate(Some(replay::TOPIC)).map_err(CommandFailure::failed)?;
    let mut failed = 0;
    for (file, dialogue) in options.files.iter().zip(dialogues) {
        let file = file.display();
        let result = match server {
            Some(_) if !dialogue.settings.live => {
                say(format_args!("{file}: {} (not for a live server)", paint("33", "skipped")));
                continue;
            }
            Some(server) => against_server(dialogue, server, login).await,
            None => against_mailchime(dialogue, &pki).await,
        };
        match result {
            Ok(()) => say(format_args!("{file}: {}", paint("32", "ok"))),
            Err(replay::Failure::Differs(difference)) => {
                failed += 1;
                say(format_args!("{file}:{}: {}", difference.line, paint("31", "differs")));
                say(format_args!("  expected: {}", paint("32", &difference.expected)));
                say(format_args!("  heard:    {}", paint("31", &difference.heard)));
            }
            Err(replay::Failure::Broken(why)) => {
                failed += 1;
                say(format_args!("{file}: {}: {why}", paint("31", "cannot be played")));
            }
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(CommandFailure::Failed(format!(
            "{failed} of {} dialogues do not hold",
            dialogues.len()
        ))),
    }
}
