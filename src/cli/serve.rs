//! `mailchime serve`: the daemon.

use std::path::Path;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, logging, runtime};
use crate::app::{self, StartError};
use crate::config::Config;

pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path).map_err(|error| Failure::Usage(error.to_string()))?;
    logging::init(config.log.format, &config.log.level)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    runtime()?.block_on(serve(path, &config))
}

async fn serve(path: &Path, config: &Config) -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = signals().map_err(Failure::failed)?;
    let running = app::start(config).await.map_err(|error| match error {
        StartError::Configuration(message) => {
            Failure::Usage(format!("{}: {message}", path.display()))
        }
        other => Failure::failed(other),
    })?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; a second signal ends the program at once");
    tokio::select! {
        () = running.stop() => Ok(()),
        _ = terminate.recv() => Err(Failure::Failed("ended by a second signal".into())),
        _ = interrupt.recv() => Err(Failure::Failed("ended by a second signal".into())),
    }
}

/// What SIGTERM and SIGINT are told by.
pub(super) fn signals() -> std::io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}
