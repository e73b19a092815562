//! `mailchime check`: every part is tried, and each says in a line whether it is well, or what is
//! wrong with it and what to do. Nothing is changed: no file is made, no database brought up to date.

mod api;
mod doveadm;
mod events;
mod files;
mod peers;

use std::fmt::Display;
use std::path::PathBuf;

use super::{CommandFailure, Configured, configuration, not_empty, runtime, say};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct CheckOptions {
    /// Log in at the backend as this user, with the password in the environment variable
    /// MAILCHIME_PASSWORD; where a master user watches, log in as the master for this user, too, which
    /// needs no password
    #[arg(long, value_name = "USER", value_parser = not_empty())]
    login: Option<String>,

    /// The password for --login is the first line of this file
    #[arg(long, value_name = "FILE", requires = "login")]
    password_file: Option<PathBuf>,

    #[command(flatten)]
    configured: Configured,
}

/// The lines so far.
#[derive(Debug, Default)]
struct Report {
    failed: usize,
}

pub(super) fn run(options: &CheckOptions) -> Result<(), CommandFailure> {
    let config = configuration(&options.configured)?;
    let password = match &options.login {
        Some(_) => peers::password(options.password_file.as_deref(), &config.credentials)?,
        None => None,
    };
    let mut report = Report::default();
    report.ok("configuration", options.configured.config.display());
    for warning in &config.warnings {
        report.warning("configuration", warning);
    }
    let runtime = runtime()?;
    runtime.block_on(check(&config, options.login.as_deref(), password, &mut report));
    // The look-up of a name cannot be ended, and is not waited for.
    runtime.shutdown_background();
    match report.failed {
        0 => Ok(()),
        1 => Err(CommandFailure::Failed("one check failed".to_owned())),
        failed => Err(CommandFailure::Failed(format!("{failed} checks failed"))),
    }
}

async fn check(
    config: &Config,
    login: Option<&str>,
    password: Option<peers::Password>,
    report: &mut Report,
) {
    files::certificates(&config.tls, report);
    files::secrets(config, report);
    let store = files::database(&config.store, report).await;
    files::credentials(config, store.as_ref(), report).await;
    peers::backends(config, report).await;
    if let Some(user) = login {
        if let Some(password) = password {
            peers::log_in(config, user, password, report).await;
        }
        peers::watch(config, user, report).await;
    }
    peers::push(config, store.as_ref(), report).await;
    if let Some(store) = store {
        store.close().await;
    }
    events::events(config, report);
    api::api(config, report);
}

impl Report {
    fn ok(&mut self, part: &str, text: impl Display) {
        say(format_args!("ok       {part}: {text}"));
    }

    fn warning(&mut self, part: &str, text: impl Display) {
        say(format_args!("warning  {part}: {text}"));
    }

    /// `text` says what is wrong and what to do.
    fn failed(&mut self, part: &str, text: impl Display) {
        self.failed += 1;
        say(format_args!("FAILED   {part}: {text}"));
    }
}
