//! `mailchime subscriptions list|remove`: the registrations, in the database itself, so that it works
//! whether mailchime runs or not. One that runs learns of a removal, if there is a way.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::ask::ask;
use super::table::{at, from_now, millis, short, table};
use super::{CommandFailure, Configured, configuration, logging, not_empty, runtime, say};
use crate::config::LogFormat;
use crate::model::{Account, LastingFailure, Mailbox, Subscription, SubscriptionKey};
use crate::push::dispatcher::OWN_FAULT;
use crate::store::{Store, StoreError, Target};

/// Accounts that are read at once.
const PAGE: u32 = 500;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Devices {
    /// Show who has subscribed, for what, and when each was last pushed
    List(List),
    /// Forget subscriptions; their clients are pushed again when they subscribe anew
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only this user's
    #[arg(long, value_parser = not_empty())]
    user: Option<String>,

    /// JSON, for machines
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    configured: Configured,
}

#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// Whose subscriptions: the login name
    #[arg(value_parser = not_empty())]
    user: String,

    /// Only those whose endpoint begins so, as the list shows it
    #[arg(long, alias = "token", value_name = "PREFIX", value_parser = not_empty())]
    endpoint: Option<String>,

    #[command(flatten)]
    configured: Configured,
}

pub(super) fn run(devices: &Devices) -> Result<(), CommandFailure> {
    // Rows that cannot be read are named there.
    logging::init(LogFormat::Text, "warn").map_err(CommandFailure::failed)?;
    match devices {
        Devices::List(options) => list(options),
        Devices::Remove(options) => remove(options),
    }
}

fn list(options: &List) -> Result<(), CommandFailure> {
    let user = options.user.as_deref();
    let accounts = user.map(|user| accounts(&options.configured, user)).transpose()?;
    let targets = on_store(&options.configured, async |store| {
        let Some(accounts) = &accounts else { return all(&store).await };
        let mut targets = Vec::new();
        for account in accounts {
            targets.extend(store.all_targets(account).await?);
        }
        Ok(targets)
    })?;
    if options.json {
        let devices: Vec<Value> = targets.iter().map(shown).collect();
        say(json!({ "subscriptions": devices }));
        return Ok(());
    }
    let rows: Vec<_> = targets.iter().map(row).collect();
    let head = [
        "USER",
        "TRANSPORT",
        "ENDPOINT",
        "APP",
        "STATE",
        "ROUTE",
        "REGISTERED",
        "LAST PUSH",
        "BACKEND",
        "MAILBOXES",
    ];
    say(table(&head, &rows));
    Ok(())
}

fn remove(options: &Remove) -> Result<(), CommandFailure> {
    let accounts = accounts(&options.configured, &options.user)?;
    let given = options.endpoint.as_deref().map(str::to_ascii_lowercase);
    // The list shows endpoints in part, and some alike.
    let shown = given.as_deref().filter(|given| given.ends_with('…'));
    let prefix = given.as_deref().map(|given| given.trim_end_matches('…'));
    if prefix == Some("") {
        return Err(CommandFailure::Usage(
            "--endpoint: give the beginning of an endpoint; without this option all subscriptions of the user are \
             removed"
                .into(),
        ));
    }
    let fits = |subscription: &Subscription| {
        let endpoint = &subscription.endpoint;
        prefix.is_none_or(|prefix| endpoint.as_given().to_ascii_lowercase().starts_with(prefix))
            || shown.is_some_and(|shown| endpoint.to_string().to_ascii_lowercase() == shown)
    };
    let (removed, others, alike) = on_store(&options.configured, async |store| {
        let (mut removed, mut others, mut found) = (Vec::new(), false, Vec::new());
        for account in &accounts {
            let targets = store.all_targets(account).await?;
            found.extend(targets.into_iter().map(|target| target.subscription).filter(fits));
        }
        let endpoints: BTreeSet<_> = found.iter().map(|it| &it.endpoint).collect();
        if shown.is_some() && endpoints.len() > 1 {
            return Ok((removed, others, endpoints.len()));
        }
        for subscription in &found {
            removed.extend(
                store.remove_subscription(&SubscriptionKey::from(subscription), None).await?,
            );
        }
        if prefix.is_none() {
            // What cannot be read of the account goes as well.
            for account in &accounts {
                others |= store.remove_account(account).await?;
            }
        }
        Ok((removed, others, 0))
    })?;
    if alike > 0 {
        return Err(CommandFailure::Failed(format!(
            "{alike} subscriptions of {} are shown so; without the … at the end, all of them are removed",
            options.user.escape_debug()
        )));
    }
    for gone in &removed {
        let device = &gone.subscription;
        say(format_args!("removed {} {}", device.endpoint, device.app.escape_debug()));
    }
    if others {
        let name = options.user.escape_debug();
        say(format_args!("removed what could not be read of {name}"));
        return tell(options, &accounts);
    }
    match (removed.last(), options.endpoint.as_deref()) {
        (None, Some(prefix)) => Err(CommandFailure::Failed(format!(
            "{} has no device whose endpoint begins with {:?}",
            options.user.escape_debug(),
            prefix.chars().take(8).collect::<String>()
        ))),
        (None, None) => {
            Err(CommandFailure::Failed(format!("{} has no device", options.user.escape_debug())))
        }
        (Some(last), _) => {
            if !last.account_left {
                let events = configuration(&options.configured)?.events;
                say(match events.with_metadata().next() {
                    None => "it was the last one: the password is forgotten, too",
                    Some(_) => {
                        "it was the last one: the password is forgotten, too, when mailchime has removed its \
                         entry from the mail server"
                    }
                });
            }
            tell(options, &accounts)
        }
    }
}

/// Under which names the user may have devices: the one of the account, and the spelling that was given,
/// which may have been its name before `names_ignore_case` was set.
fn accounts(configured: &Configured, user: &str) -> Result<BTreeSet<Account>, CommandFailure> {
    let given = Account::from_login(user);
    let canonical = configuration(configured)?.canonical(given.clone());
    Ok(BTreeSet::from([given, canonical]))
}

/// Tells the mailchime that runs. It asks the database before each push, and finds there that another program has written.
fn tell(options: &Remove, accounts: &BTreeSet<Account>) -> Result<(), CommandFailure> {
    let later = "it learns of this from the database within seconds";
    if configuration(&options.configured)?.admin.address.is_none() {
        say(format_args!(
            "could not tell a running mailchime, as [admin] address is not set: {later}"
        ));
        return Ok(());
    }
    let told = accounts.iter().try_for_each(|account| {
        let user = [("user", account.as_str())];
        ask(&options.configured, Method::POST, "/subscriptions", &user).map(drop)
    });
    match told {
        Ok(()) => say("the mailchime that runs has been told"),
        Err(CommandFailure::Failed(why) | CommandFailure::Usage(why)) => {
            say(format_args!("could not tell a running mailchime: {why}; if one runs, {later}"));
        }
    }
    Ok(())
}

/// Works on the database, which must be there.
fn on_store<T>(
    configured: &Configured,
    work: impl AsyncFnOnce(Store) -> Result<T, StoreError>,
) -> Result<T, CommandFailure> {
    let config = configuration(configured)?;
    runtime()?.block_on(async {
        let store = Store::open_existing(&config.store.url, config.store.busy_timeout)
            .await
            .map_err(CommandFailure::failed)?;
        let result = work(store.clone()).await.map_err(CommandFailure::failed);
        store.close().await;
        result
    })
}

async fn all(store: &Store) -> Result<Vec<Target>, StoreError> {
    let (mut all, mut last) = (Vec::new(), None);
    while let Some((account, page)) = store.subscriptions(last.as_ref(), PAGE).await? {
        all.extend(page);
        last = Some(account);
    }
    Ok(all)
}

fn row(target: &Target) -> Vec<String> {
    let device = &target.subscription;
    let mailboxes: Vec<_> = target.mailboxes.iter().map(mailbox).collect();
    vec![
        device.account.as_str().escape_debug().to_string(),
        device.transport.to_string(),
        device.endpoint.to_string(),
        device.app.escape_debug().to_string(),
        target.state.name().to_owned(),
        device.route.escape_debug().to_string(),
        match target.outdated_since {
            None => from_now(Some(at(target.registered_at.0))),
            Some(_) => format!("{}, old password", from_now(Some(at(target.registered_at.0)))),
        },
        match &target.failing {
            None => from_now(target.pushed_at.map(|time| at(time.0))),
            Some(failing) => {
                let pushed = from_now(target.pushed_at.map(|time| at(time.0)));
                format!("{pushed}, {}", failing_text(failing))
            }
        },
        target.backend.as_deref().unwrap_or("-").escape_debug().to_string(),
        mailboxes.join(", "),
    ]
}

/// How its pushes fail, and what comes of that.
fn failing_text(failing: &LastingFailure) -> String {
    let (since, kind) = (from_now(Some(at(failing.since.0))), failing.kind.escape_debug());
    match failing.own_fault {
        Duration::ZERO => format!("failing since {since}: {kind}"),
        counted => {
            let left = short(OWN_FAULT.saturating_sub(counted));
            format!(
                "failing since {since}: {kind} by its own fault, removed after {left} more of it"
            )
        }
    }
}

fn mailbox((name, owed): &(Mailbox, bool)) -> String {
    format!("{}{}", name.as_str().escape_debug(), if *owed { " (owed)" } else { "" })
}

fn shown(target: &Target) -> Value {
    let device = &target.subscription;
    let names = |owed_only: bool| -> Vec<&str> {
        let named = target.mailboxes.iter().filter(|(_, owed)| *owed || !owed_only);
        named.map(|(name, _)| name.as_str()).collect()
    };
    json!({
        "account": device.account.as_str(),
        "transport": device.transport.as_str(),
        "endpoint": device.endpoint.to_string(),
        "app": &*device.app,
        "state": target.state.name(),
        "route": &*device.route,
        "registered_at": target.registered_at.0,
        "pushed_at": target.pushed_at.map(|time| time.0),
        "failing_since": target.failing.as_ref().map(|failing| failing.since.0),
        "failing_kind": target.failing.as_ref().map(|failing| &*failing.kind),
        "own_fault": target.failing.as_ref().map(|failing| millis(failing.own_fault)),
        "backend": target.backend,
        "outdated_since": target.outdated_since.map(|time| time.0),
        "mailboxes": names(false),
        "owed": names(true),
    })
}
