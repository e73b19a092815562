//! What `mailchime check` says of Web Push: its key, and whether the browsers of the database have subscribed with it.

use std::sync::Arc;

use super::vapid::VapidKey;
use crate::config::Config;
use crate::files;
use crate::net::guard::Guard;
use crate::net::resolve::NameResolver;
use crate::push::transport::check::{CheckLine, CheckLines};
use crate::store::Store;

/// Checks the key. Nothing is sent: only browsers know the push services.
pub(in crate::push::transport) async fn run(
    config: &Config,
    store: Option<&Store>,
    report: &mut dyn FnMut(CheckLine),
) {
    let mut lines = CheckLines::new("[webpush]", report);
    let Some(web_push) = &config.web_push else { return };
    let guard = Arc::new(Guard::new(&web_push.hosts, &web_push.allow_private));
    if let Err(error) = super::client(web_push, guard, &NameResolver::default()) {
        lines.refused(error);
    }
    let file = &web_push.key_file;
    let key = match files::exists(file).then(|| VapidKey::open_existing(file, &web_push.contact)) {
        Some(Ok(key)) => Some(key),
        Some(Err(error)) => return lines.refused(error),
        None => None,
    };
    let routes = match store {
        Some(store) => store.routes(&super::transport()).await,
        None => Ok(Vec::new()),
    };
    let mut routes = match routes {
        Ok(routes) => routes,
        Err(error) => return lines.failed(error),
    };
    routes.retain(|(route, _)| key.as_ref().is_none_or(|key| **key.fingerprint() != **route));
    let shown = file.display();
    for (other, subscriptions) in &routes {
        let is = if key.is_some() { "not the key" } else { "not there, and was the key" };
        let browsers = match subscriptions {
            1 => "1 browser has".to_owned(),
            more => format!("{more} browsers have"),
        };
        lines.failed(format_args!(
            "{shown}: is {is} with which {browsers} subscribed ({other}); put back the key file of that \
             time, or they get nothing until their users subscribe again{}",
            if key.is_some() { "" } else { "; mailchime makes no other, and pushes nothing to browsers" }
        ));
    }
    match key {
        Some(key) => {
            lines.ok(format_args!("{shown}: can be used, its key is {}", key.fingerprint()))
        }
        None if routes.is_empty() => match files::to_be_made(file) {
            Ok(well) => lines.ok(well),
            Err(problem) => lines.refused(problem),
        },
        None => {}
    }
}
