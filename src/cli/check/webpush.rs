//! Web Push: its key, and whether the browsers of the database have subscribed with it.

use std::sync::Arc;

use super::Report;
use super::files::{exists, to_be_made};
use crate::config::Config;
use crate::net::guard::Guard;
use crate::net::resolve::NameResolver;
use crate::push::transport::webpush;
use crate::push::transport::webpush::vapid::VapidKey;
use crate::store::Store;

const PART: &str = "[webpush]";

/// Nothing is sent: who the push services are is known by the browsers alone.
pub(super) async fn web_push(config: &Config, store: Option<&Store>, report: &mut Report) {
    let Some(web_push) = &config.web_push else { return };
    let guard = Arc::new(Guard::new(&web_push.hosts, &web_push.allow_private));
    if let Err(error) = webpush::client(web_push, guard, &NameResolver::default()) {
        report.failed(PART, error);
    }
    let file = &web_push.key_file;
    let key = match exists(file).then(|| VapidKey::open_existing(file, &web_push.contact)) {
        Some(Ok(key)) => Some(key),
        Some(Err(error)) => return report.failed(PART, error),
        None => None,
    };
    let routes = match store {
        Some(store) => store.routes(&webpush::transport()).await,
        None => Ok(Vec::new()),
    };
    let mut routes = match routes {
        Ok(routes) => routes,
        Err(error) => return report.failed(PART, error),
    };
    routes.retain(|(route, _)| key.as_ref().is_none_or(|key| **key.fingerprint() != **route));
    let shown = file.display();
    for (other, subscriptions) in &routes {
        let is = if key.is_some() { "not the key" } else { "not there, and was the key" };
        report.failed(
            PART,
            format_args!(
                "{shown}: is {is} with which {subscriptions} browsers have subscribed ({other}); put back \
                 the key file of that time, or they get nothing until their users subscribe again"
            ),
        );
    }
    match key {
        Some(key) => {
            report.ok(PART, format_args!("{shown}: can be used, its key is {}", key.fingerprint()))
        }
        None if routes.is_empty() => to_be_made(PART, file, report),
        None => {}
    }
}
