//! `mailchime import`: registrations of a program that pushed to the same phones before.
//!
//! It may be run again: what is here already stays as it is.

mod notifyd;
mod xapsd;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{CommandFailure, Configured, configuration, logging, not_empty, runtime, say};
use crate::app::push_offer;
use crate::config::{Config, CredentialsMode, DatabaseKind, LogFormat};
use crate::imap::contract::PushOffer;
use crate::imap::mailbox;
use crate::imap::registration::xapple::{CheckedRegistration, XAppleRegistration};
use crate::model::{Account, Mailbox, Snapshot, Timestamp};
use crate::net::backends::{Backends, Table};
use crate::net::resolve::NameResolver;
use crate::push::transport::apns::ApnsIdentity;
use crate::push::transport::apns::identities::Offer;
use crate::store::{Full, ImportOutcome, ImportedRegistration, Shares, Store, StoreError};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Import {
    /// From the database of xapsd (dovecot-xaps-daemon), a file in JSON
    Xapsd(xapsd::XapsdOptions),
    /// From the MySQL or MariaDB tables of a notifyd script for Cyrus
    NotifydMysql(notifyd::NotifydOptions),
}

/// What both take.
#[derive(Debug, clap::Args)]
struct ImportOptions {
    /// The topic that the former program gave to phones: the UID in the subject of its certificate (`aps_topic`
    /// of Cyrus). Phones listen to this one until they register anew
    #[arg(long, value_parser = not_empty())]
    topic: String,

    /// Say what would be taken over, and change nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    configured: Configured,
}

/// A registration as the former program has it. Nothing of it was checked.
#[derive(Debug)]
struct FoundDevice {
    user: String,
    token: String,
    account_id: String,
    app: String,
    version: u64,
    /// Names of the wire.
    mailboxes: Vec<String>,
    registered_at: Option<Timestamp>,
}

/// What the former program has, and what to say of it.
#[derive(Debug)]
struct FormerDevices {
    devices: Vec<FoundDevice>,
    /// For the end of the report.
    notes: Vec<&'static str>,
}

/// What a registration needs to be taken over.
#[derive(Debug)]
struct ImportTarget {
    config: Config,
    backends: Backends,
    offer: PushOffer,
    topic: String,
    dry_run: bool,
}

/// What became of one device, for the report.
#[derive(Debug)]
struct ReportedDevice {
    token: String,
    /// The mailboxes, or why it is skipped.
    outcome: Result<String, String>,
}

pub(super) fn run(import: &Import) -> Result<(), CommandFailure> {
    logging::init(LogFormat::Text, "warn").map_err(CommandFailure::failed)?;
    let options = match import {
        Import::Xapsd(options) => options.common(),
        Import::NotifydMysql(options) => options.common(),
    };
    let target = ImportTarget::new(options)?;
    let runtime = runtime()?;
    let found = match import {
        Import::Xapsd(options) => options.read()?,
        Import::NotifydMysql(options) => runtime.block_on(options.read())?,
    };
    let reports = runtime.block_on(target.take_over(found.devices))?;
    target.report(&reports, &found.notes);
    Ok(())
}

impl ImportTarget {
    fn new(options: &ImportOptions) -> Result<Self, CommandFailure> {
        let config = configuration(&options.configured)?;
        let mut offers = Vec::new();
        for apns in &config.apns {
            let identity = ApnsIdentity::load(&apns.identity)
                .map_err(|error| CommandFailure::Usage(format!("[apns]: {error}")))?;
            let topic = Some(identity.topic().to_owned());
            offers.push(Offer { topic, domains: apns.domains.clone() });
        }
        let topics: Vec<_> = offers.iter().filter_map(|offer| offer.topic.as_deref()).collect();
        if !topics.contains(&&*options.topic) {
            let has = match topics.is_empty() {
                true => "there is no [apns]".to_owned(),
                false => format!("[apns] has {}", topics.join(", ").escape_debug()),
            };
            return Err(CommandFailure::Failed(format!(
                "no certificate is for the topic {}: {has}. Phones that registered with it hear nothing \
                 else, so nothing was taken over. Give [apns] the former certificate, or leave out the \
                 import: each phone registers anew within a day",
                options.topic.escape_debug()
            )));
        }
        let Some(offer) = push_offer(offers, &config.push) else {
            return Err(CommandFailure::Failed("push is off".to_owned()));
        };
        let resolver = NameResolver::new(&config.resolver, Arc::default());
        let table = Table::new(&config, &resolver)
            .map_err(|error| CommandFailure::Usage(error.to_string()))?;
        let backends = Backends::new(table, Arc::default());
        let (topic, dry_run) = (options.topic.clone(), options.dry_run);
        Ok(Self { config, backends, offer, topic, dry_run })
    }

    /// Takes over what can be, the newest first, and says of each account what became of its devices.
    async fn take_over(
        &self,
        mut devices: Vec<FoundDevice>,
    ) -> Result<BTreeMap<String, Vec<ReportedDevice>>, CommandFailure> {
        let store = self.open().await.map_err(CommandFailure::failed)?;
        devices.sort_by_key(|device| std::cmp::Reverse(device.registered_at));
        let now = Timestamp::now();
        let mut reports: BTreeMap<String, Vec<ReportedDevice>> = BTreeMap::new();
        // The same device of the same account, under an older id.
        let mut seen = std::collections::BTreeSet::new();
        for device in devices {
            let (user, token) = (device.user.clone(), device.token.clone());
            let key = (user.clone(), token.to_ascii_lowercase(), device.app.clone());
            let outcome = match self.checked(device, now) {
                Ok(_) if !seen.insert(key) => {
                    Err("the phone has registered this account anew since, with another id"
                        .to_owned())
                }
                Ok(imported) => {
                    let mailboxes = imported.registration.mailboxes.iter();
                    let names = mailboxes.map(|(name, _)| name.as_str().escape_debug().to_string());
                    let names = names.collect::<Vec<_>>().join(", ");
                    let most = u32::try_from(self.config.push.subscriptions).unwrap_or(u32::MAX);
                    match store.import(&imported, most, self.dry_run).await {
                        Ok(outcome) => said(outcome).map_or(Ok(names), |why| Err(why.to_owned())),
                        Err(error) => {
                            store.close().await;
                            return Err(CommandFailure::Failed(format!(
                                "{error}; run it again, it goes on where it stopped"
                            )));
                        }
                    }
                }
                Err(why) => Err(why),
            };
            reports.entry(user).or_default().push(ReportedDevice { token, outcome });
        }
        if !self.dry_run {
            store.take_statistics().await;
        }
        store.close().await;
        Ok(reports)
    }

    /// The database, which must be there. No mailchime may serve from a file meanwhile: it would not know
    /// the accounts.
    async fn open(&self) -> Result<Store, StoreError> {
        let store = &self.config.store;
        let opened = Store::open_existing(&store.url, store.busy_timeout).await?;
        let opened = match (self.dry_run, store.url.kind()) {
            (false, DatabaseKind::Sqlite(_)) => {
                opened.close().await;
                Store::open(&store.url, store.busy_timeout).await?
            }
            _ => opened,
        };
        let push = &self.config.push;
        Ok(opened.sharing(Shares {
            accounts_per_device: push.accounts_per_device,
            accounts_per_domain: push.accounts_per_domain,
            subscriptions_per_domain: push.subscriptions_per_domain,
            accounts_per_backend: push.accounts_per_backend,
            subscriptions_per_backend: push.subscriptions_per_backend,
        }))
    }

    /// What is to be stored of a device, or why it is skipped.
    fn checked(&self, device: FoundDevice, now: Timestamp) -> Result<ImportedRegistration, String> {
        let FoundDevice { user, token, account_id, app, version, mailboxes, registered_at } =
            device;
        if user.is_empty() || user.chars().any(char::is_control) {
            return Err("this is no name of a user".to_owned());
        }
        let Some(registered_at) = registered_at else {
            return Err(
                "when it registered is not known; a phone that lives registers anew within a day"
                    .into(),
            );
        };
        let registered_at = registered_at.min(now);
        let ttl = self.config.push.registration_ttl;
        if registered_at < now.minus(ttl) {
            let ttl = humantime::format_duration(ttl);
            return Err(format!(
                "it has not registered since {}, longer than [push] registration_ttl ({ttl})",
                registered_at.date()
            ));
        }
        let names = mailboxes.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut request = XAppleRegistration::new(version, account_id, &token, app, names)
            .map_err(|error| format!("this is no registration: {error}"))?;
        if !self.offer.serves(request.app()) {
            return Err("[push] clients does not name its mail client".to_owned());
        }
        let account = self.backends.canonical(Account::from_login(&user));
        let Some(backend) = self.backends.id_of(&account) else {
            return Err("the name leaves open which [[route]] it is of".to_owned());
        };
        if self.offer.route(&account) != Some(&*self.topic) {
            return Err(
                "the certificate of its domain is for another topic than --topic".to_owned()
            );
        }
        let mailboxes = readable(request.take_names(), self.offer.most_mailboxes);
        if mailboxes.is_empty() {
            return Err("it names no mailbox".to_owned());
        }
        let checked = CheckedRegistration { account, request, mailboxes };
        Ok(ImportedRegistration {
            registration: checked.under(&self.topic),
            registered_at,
            backend,
        })
    }

    fn report(&self, reports: &BTreeMap<String, Vec<ReportedDevice>>, notes: &[&str]) {
        let (mut taken, mut skipped) = (0, 0);
        for (user, devices) in reports {
            let all = devices.len();
            let here = devices.iter().filter(|device| device.outcome.is_ok()).count();
            (taken, skipped) = (taken + here, skipped + all - here);
            let user = user.escape_debug();
            say(format_args!("{user}: {here} taken over, {} skipped", all - here));
            for ReportedDevice { token, outcome } in devices {
                let token = token.chars().take(8).collect::<String>();
                let token = token.escape_debug();
                match outcome {
                    Ok(mailboxes) => say(format_args!("  taken over  {token}…  {mailboxes}")),
                    Err(why) => say(format_args!("  skipped     {token}…  {why}")),
                }
            }
        }
        let accounts = reports.len();
        let would = if self.dry_run { "would be " } else { "" };
        say(format_args!(
            "accounts: {accounts}, devices: {taken} {would}taken over, {skipped} skipped"
        ));
        if self.dry_run {
            say("This was a dry run: nothing was changed.");
        }
        if taken > 0 {
            say(match self.config.credentials {
                CredentialsMode::Master => {
                    "The master user watches these accounts from the next start of mailchime on."
                }
                _ => {
                    "The former program has no passwords, so an account is watched from its user's next \
                     login by mailchime on: as soon as the phone fetches."
                }
            });
            notes.iter().for_each(say);
        }
    }
}

/// The mailboxes of these names of the wire, as many as are watched for a device.
fn readable(names: Vec<Vec<u8>>, most: usize) -> Vec<(Mailbox, Snapshot)> {
    let mut mailboxes: Vec<(Mailbox, Snapshot)> = Vec::new();
    for name in &names {
        let decoded = mailbox::decode(name, false).or_else(|| mailbox::decode(name, true));
        let Some(decoded) = decoded else { continue };
        if mailboxes.len() < most && mailboxes.iter().all(|(known, _)| *known != decoded) {
            mailboxes.push((decoded, Snapshot::default()));
        }
    }
    mailboxes
}

/// Why it was skipped; `None` if it was not.
fn said(outcome: ImportOutcome) -> Option<&'static str> {
    Some(match outcome {
        ImportOutcome::TakenOver => return None,
        ImportOutcome::Known => "mailchime knows it already",
        ImportOutcome::OtherBackend => "the account is at another backend since",
        ImportOutcome::TooManySubscriptions => {
            "the account has as many subscriptions as [push] subscriptions allows"
        }
        ImportOutcome::TooManyAccounts => {
            "the device has as many accounts as [push] accounts_per_device allows"
        }
        ImportOutcome::Full(Full::AccountsPerDomain) => "[push] accounts_per_domain is reached",
        ImportOutcome::Full(Full::SubscriptionsPerDomain) => {
            "[push] subscriptions_per_domain is reached"
        }
        ImportOutcome::Full(Full::AccountsPerBackend) => "[push] accounts_per_backend is reached",
        ImportOutcome::Full(Full::SubscriptionsPerBackend | Full::PendingPerAccount) => {
            "[push] subscriptions_per_backend is reached"
        }
    })
}
