//! `mailchime serve`: the daemon.

use std::path::Path;

use tokio::signal::unix::SignalKind;

use super::{Failure, Signals, logging, runtime};
use crate::app::{self, StartError};
use crate::config::Config;

pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path).map_err(|error| Failure::Usage(error.to_string()))?;
    logging::init(config.log.format, &config.log.level)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(path, &config));
    // The look-up of a name cannot be ended, and is not waited for.
    runtime.shutdown_background();
    ended
}

async fn serve(path: &Path, config: &Config) -> Result<(), Failure> {
    let mut signals = Signals::new(&[SignalKind::terminate(), SignalKind::interrupt()])?;
    let started = tokio::select! {
        started = app::start(config) => started,
        () = signals.next() => return Ok(()),
    };
    let running = started.map_err(|error| match error {
        StartError::Configuration(message) => {
            Failure::Usage(format!("{}: {message}", path.display()))
        }
        other => Failure::failed(other),
    })?;
    signals.next().await;
    tracing::info!("stopping; a second signal ends the program at once");
    tokio::select! {
        () = running.stop() => Ok(()),
        () = signals.next() => Err(Failure::Failed("ended by a second signal".into())),
    }
}
