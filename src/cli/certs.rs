//! `mailchime certs dev`: certificates for development and tests.

use std::path::PathBuf;

use super::{CommandFailure, not_empty, say};
use crate::demo::pki::Pki;

#[derive(Debug, clap::Args)]
pub(super) struct CertsOptions {
    /// The folder to write to
    #[arg(long, value_name = "FOLDER", default_value = "certs")]
    out: PathBuf,

    /// The push topic in the APNs certificate; a random one if it is not given
    #[arg(long, value_parser = not_empty())]
    topic: Option<String>,
}

pub(super) fn run(options: &CertsOptions) -> Result<(), CommandFailure> {
    let pki = Pki::generate(options.topic.as_deref()).map_err(CommandFailure::failed)?;
    for path in pki.write_to(&options.out).map_err(CommandFailure::failed)? {
        say(path.display());
    }
    say(format_args!("Push topic: {}", pki.topic));
    Ok(())
}
