//! `mailchime serve`: the daemon.

use std::io::{self, IsTerminal};
use std::net::TcpListener;
use std::path::Path;

use tokio::signal::unix::SignalKind;
use tokio::time::MissedTickBehavior;

use super::{CommandFailure, Signals, logging, runtime};
use crate::app::{self, StartError, renewal, systemd};
use crate::config::Config;
use crate::net::{descriptors, listen};

/// `secluded` tells whether the process could be shut to others.
pub(super) fn run(path: &Path, secluded: io::Result<()>) -> Result<(), CommandFailure> {
    let config = Config::load(path).map_err(|error| CommandFailure::Usage(error.to_string()))?;
    let log = logging::init(config.log.format, &config.log.level)
        .map_err(|error| CommandFailure::Usage(error.to_string()))?;
    if let Err(error) = secluded {
        tracing::warn!(
            target: "mailchime::app::memory_not_protected",
            %error,
            "could not protect the memory of this process; other processes of this user can read it"
        );
    }
    descriptors::raise();
    // Before there are threads.
    let sockets = listen::inherited().map_err(|error| {
        CommandFailure::Failed(format!("systemd's sockets are unusable: {error}"))
    })?;
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(path, &config, sockets, &log));
    // The look-up of a name cannot be ended, and is not waited for.
    runtime.shutdown_background();
    ended
}

async fn serve(
    path: &Path,
    config: &Config,
    sockets: Vec<TcpListener>,
    log: &logging::Level,
) -> Result<(), CommandFailure> {
    let mut signals = Signals::new(&[SignalKind::terminate(), SignalKind::interrupt()])?;
    let mut hangups = Signals::new(&[SignalKind::hangup()])?;
    let terminals = terminals();
    let started = tokio::select! {
        started = app::start_with(config, sockets) => started,
        () = signals.next() => return Ok(()),
    };
    let mut running = started.map_err(|error| match error {
        StartError::Configuration(message) => {
            CommandFailure::Usage(format!("{}: {message}", path.display()))
        }
        other => CommandFailure::failed(other),
    })?;
    if let Some(shortage) = descriptors::shortage(&config.limits) {
        tracing::warn!(
            target: "mailchime::app::few_files",
            shortage,
            "the system allows fewer open files than [limits] needs; clients are refused before that"
        );
    }
    systemd::ready();
    let watchdog = tokio::spawn(systemd::watchdog());
    let mut looks = tokio::time::interval(renewal::LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = signals.next() => break,
            _ = looks.tick() => {
                running.look_at_certificates();
                running.look_at_vapid_key().await;
            }
            () = hangups.next() => {
                if terminals.iter().zip(self::terminals()).any(|(was, is)| *was && !is) {
                    tracing::info!(
                        target: "mailchime::app::terminal_closed",
                        "the terminal that mailchime was started in is closed; mailchime stops"
                    );
                    break;
                }
                reload(path, &mut running, log).await;
            }
        }
    }
    systemd::stopping();
    tracing::info!(
        target: "mailchime::app::stopping",
        "stopping; a second signal ends mailchime at once"
    );
    tokio::select! {
        () = running.stop() => {}
        () = signals.next() => return Err(CommandFailure::Failed("ended by a second signal".into())),
    }
    watchdog.abort();
    Ok(())
}

/// Which of standard input and error are terminals. One that was closed is none any more, and its SIGHUP does not mean
/// a reload.
fn terminals() -> [bool; 2] {
    [io::stdin().is_terminal(), io::stderr().is_terminal()]
}

/// Reads the configuration again; if it cannot be used, all stays as it was.
async fn reload(path: &Path, running: &mut app::Server, log: &logging::Level) {
    systemd::reloading();
    let reloaded = async {
        let config = Config::load(path).map_err(|error| error.to_string())?;
        let failed = |error: StartError| format!("{}: {error}", path.display());
        running.reload(&config).await.map_err(failed)?;
        log.set(&config.log.level).map_err(|error| error.to_string())
    };
    let reloaded = reloaded.await;
    match reloaded {
        Ok(()) => tracing::info!(
            target: "mailchime::config::reloaded",
            "configuration reloaded"
        ),
        Err(why) => tracing::error!(
            target: "mailchime::config::reload_failed",
            why, "could not reload the configuration; mailchime keeps the previous one"
        ),
    }
    systemd::ready();
}
