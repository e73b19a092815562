//! What keeps mailchime from starting, found out without starting it.

use std::sync::Arc;

use super::server_tls::server_tls;
use super::services::ServicesSetup;
use super::startup::check_record;
use super::{MailPushSetup, StartError, intake};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::net::backends::Table;
use crate::net::resolve::NameResolver;
use crate::net::tls;
use crate::push::transport::Routes;

/// Makes those parts of a start that read files alone. No socket is opened, no database, and no file stays
/// behind.
///
/// # Errors
/// [`StartError`] names what [`super::start`] would fail with.
pub fn examine(config: &Config) -> Result<(), StartError> {
    let tickets = tls::tickets().map_err(|error| StartError::key("[tls]", error))?;
    server_tls(&config.tls, &tickets)?;
    let resolver = NameResolver::new(&config.resolver, Arc::default());
    Table::new(config, &resolver).map_err(|error| StartError::Configuration(error.to_string()))?;
    MailPushSetup::load(config, &resolver, &Routes::default())?;
    ServicesSetup::load(config, config.api.address.is_some(), &resolver)?;
    check_record(config)?;
    intake::sources(&config.events, &Metrics::default()).map_err(StartError::Configuration)?;
    Ok(())
}
