//! `mailchime check`: every part is tried, and each says in a line whether it is well, or what is
//! wrong with it and what to do. Nothing is changed: no file is made, no database brought up to date.

mod api;
mod chain;
mod doveadm;
mod events;
mod files;
mod itself;
mod limits;
mod occupant;
mod peers;
mod ports;
mod remedies;
mod unit;
mod user;

pub(in crate::cli) use self::chain::is_self_signed;
pub(in crate::cli) use self::remedies::of_refused_certificate;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{CommandFailure, Configured, configuration, not_empty, runtime, say};
use crate::app;
use crate::config::Config;
use crate::net::resolve::NameResolver;

/// For a backend's answers.
const ANSWER_TIME: Duration = Duration::from_secs(15);

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

    /// As root, look at files as this user does, whom mailchime runs as; where the configuration is below /etc
    /// it is mailchime, if there is such a user
    #[arg(long, value_name = "NAME", value_parser = not_empty())]
    user: Option<String>,

    #[command(flatten)]
    configured: Configured,
}

/// The lines so far.
#[derive(Debug, Default)]
struct Report {
    failed: usize,
    /// Of these, what `serve` does not start with because the configuration is at fault.
    refused: usize,
    /// What lines begin with that are about what the service cannot use, whatever is seen of it here.
    hidden: Vec<String>,
}

pub(super) fn run(options: &CheckOptions) -> Result<(), CommandFailure> {
    user::go_home(options.user.as_deref(), &options.configured.config);
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
    hidden(&config, &options.configured.config, &mut report);
    // Ports are root's matter or the unit's, which gives the right to use them; Unix sockets are files.
    let as_caller = runtime()?;
    let running = as_caller.block_on(ports::listeners(&config, &mut report));
    as_caller.shutdown_background();
    if let Some(user) = user::become_service(options.user.as_deref(), &options.configured.config)? {
        report.ok("user", format_args!("files are looked at as {} does", user.escape_debug()));
        // The file itself, too.
        configuration(&options.configured)?;
    }
    let runtime = runtime()?;
    runtime.block_on(async {
        ports::sockets(&config, running, &mut report).await;
        check(&config, running, (options.login.as_deref(), password), &mut report).await;
    });
    // The look-up of a name cannot be ended, and is not waited for.
    runtime.shutdown_background();
    let told = match report.failed {
        0 => return Ok(()),
        1 => "one check failed".to_owned(),
        failed => format!("{failed} checks failed"),
    };
    Err(match report.refused {
        0 => CommandFailure::Failed(told),
        _ => CommandFailure::Usage(told),
    })
}

async fn check(
    config: &Config,
    running: ports::Running,
    (login, password): (Option<&str>, Option<peers::Password>),
    report: &mut Report,
) {
    files::certificates(&config.tls, report);
    files::secrets(config, report);
    let store = files::database(&config.store, running, report).await;
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
    limits::open_files(config, report);
    // What is wrong between the parts. Of what is wrong with one of them enough was said.
    if report.refused == 0
        && let Err(error) = app::examine(config)
    {
        report.refused("configuration", error);
    }
}

/// What the unit keeps from an installed service.
fn hidden(config: &Config, file: &Path, report: &mut Report) {
    let Some(unit) = user::is_installed(file).then(unit::Unit::find).flatten() else { return };
    for unit::Hidden { key, path, why, named } in unit.hidden(config) {
        report.warning(key, format_args!("{}: {why}", path.display()));
        report.hidden.extend(named);
    }
}

/// Looks names up as the program does.
fn resolver(config: &Config) -> NameResolver {
    NameResolver::new(&config.resolver, Arc::default())
}

impl Report {
    /// Nothing is said to be well of a path that the service cannot use.
    fn ok(&mut self, part: &str, text: impl Display) {
        let text = text.to_string();
        let is_of = |name: &String| text.starts_with(&format!("{name}: "));
        if !self.hidden.iter().any(is_of) {
            say(format_args!("ok       {part}: {text}"));
        }
    }

    fn warning(&mut self, part: &str, text: impl Display) {
        say(format_args!("warning  {part}: {text}"));
    }

    /// As [`Report::failed`], of what `serve` does not start with either, with the status of a bad
    /// configuration.
    fn refused(&mut self, part: &str, text: impl Display) {
        self.refused += 1;
        self.failed(part, text);
    }

    /// `text` says what is wrong and what to do.
    fn failed(&mut self, part: &str, text: impl Display) {
        self.failed += 1;
        say(format_args!("FAILED   {part}: {text}"));
    }
}
