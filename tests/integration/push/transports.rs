//! All transports side by side, for one account: a service that hangs delays no push by another, and each push is
//! counted under the name of its transport.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use mailchime::config::{PushConfig, WebhookConfig};
use mailchime::demo::apns::Answer;
use mailchime::demo::fcm::{FcmAnswer, FcmStandIn, TokenAnswers};
use mailchime::demo::push_service::{PushService, Reply};
use mailchime::demo::webhook::{ReceiverAnswer, WebhookReceiver};
use mailchime::model::{Subscription, Timestamp, TransportId};
use mailchime::net::guard::Guard;
use mailchime::net::resolve::NameResolver;
use mailchime::push::transport::apns::identities::Identities;
use mailchime::push::transport::enrol::{Enrol, Transports};
use mailchime::push::transport::fcm::FcmSetup;
use mailchime::push::transport::webhook::users::UserWebhooks;
use mailchime::push::transport::webhook::{USERS, of_operator, operator};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::resume;

use super::webpush::Site;
use crate::support::pushing::{
    Certificates, Disk, EVER, Running, StandIn, alice, fcm_project, rows,
};
use crate::support::servers::pki;
use crate::support::{limited, listener, stop_clock, until};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Subscriptions of each transport.
const EACH: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Apns,
    Fcm,
    Webhook,
    WebPush,
}

const ALL: [Kind; 4] = [Kind::Apns, Kind::Fcm, Kind::Webhook, Kind::WebPush];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Apns => "apns",
            Self::Fcm => "fcm",
            Self::Webhook => "webhook",
            Self::WebPush => "webpush",
        }
    }
}

/// A service of each transport, and the routes to them.
struct Services {
    _folder: TempDir,
    certificates: Certificates,
    apns: StandIn,
    fcm: FcmStandIn,
    transports: Transports,
    receiver: WebhookReceiver,
    hooks: UserWebhooks,
    push_service: PushService,
    site: Site,
}

impl Services {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki().write_to(folder.path()).unwrap();
        let (ca, resolver) = (folder.path().join("ca.pem"), NameResolver::default());
        let push_service = PushService::start(listener().await, pki()).unwrap();
        let site = Site::to(&[&push_service]);
        let routes = &site.routes;

        let certificates = Certificates::new();
        let apns = certificates.stand_in().await;
        let identity = [certificates.config(apns.address())];
        Identities::load(&identity, (&PushConfig::default()).into(), &resolver, routes).unwrap();

        let fcm = FcmStandIn::start(listener().await, pki()).unwrap();
        let project = fcm_project(&fcm, folder.path());
        let transports = Transports::default();
        FcmSetup::load(&[project], &resolver).unwrap().publish(routes, &transports);

        let receiver = WebhookReceiver::start(listener().await, Some(pki())).unwrap();
        let secret = folder.path().join("hook.secret");
        fs::write(&secret, SECRET).unwrap();
        let mut own = WebhookConfig::new("own", receiver.url("/own").parse().unwrap(), secret);
        own.ca = Some(ca.clone());
        let host = format!("localhost:{}", receiver.address().port());
        let private = ["127.0.0.0/8", "::1/128"].map(|it| it.parse().unwrap());
        let hooks = UserWebhooks::new(Guard::new(&[host.parse().unwrap()], &private));
        let of_webhooks = [
            ("own".into(), operator::route(&own, &resolver).unwrap()),
            (USERS.into(), hooks.route(Some(&ca), &resolver).unwrap()),
        ];
        routes.publish(&TransportId::new("webhook"), of_webhooks);
        let _folder = folder;
        Self { _folder, certificates, apns, fcm, transports, receiver, hooks, push_service, site }
    }

    /// One of alice's. The first web hook is the operator's, all others are hers.
    fn subscription(&self, kind: Kind, n: usize) -> Subscription {
        let enrolled = match kind {
            Kind::Apns => return self.certificates.device(&format!("a{n}")),
            Kind::WebPush => return self.site.browser(&self.push_service).1,
            Kind::Webhook if n == 0 => return of_operator("own", &alice()),
            Kind::Webhook => {
                let url = self.receiver.url(&format!("/{n}"));
                self.hooks.enrol(&alice(), &json!({ "url": url }))
            }
            Kind::Fcm => {
                let fcm = self.transports.find(&TransportId::new("fcm")).unwrap();
                let app = json!({ "token": format!("token-{n}"), "app": "org.example.mail" });
                fcm.enrol(&alice(), &app)
            }
        };
        enrolled.unwrap().subscription
    }

    /// How many pushes have come, with any answer.
    fn received(&self, kind: Kind) -> usize {
        match kind {
            Kind::Apns => self.apns.pushes().len(),
            Kind::Fcm => self.fcm.messages().len(),
            Kind::Webhook => self.receiver.events().len(),
            Kind::WebPush => self.push_service.received().try_into().unwrap(),
        }
    }

    /// What waits for an answer gets none for ever.
    async fn shut(&self, kind: Kind) {
        match kind {
            Kind::Apns => {
                self.apns.refuse().await;
                self.apns.drop_connections();
            }
            Kind::Fcm => self.fcm.refuse().await,
            Kind::Webhook => self.receiver.refuse().await,
            Kind::WebPush => {
                self.push_service.refuse().await;
                self.push_service.drop_connections();
            }
        }
    }
}

/// How many mailboxes subscriptions are owed, by transport.
async fn owed(disk: &Disk) -> BTreeMap<String, usize> {
    let mut owed = BTreeMap::new();
    for target in disk.store.targets(&alice(), EVER).await.unwrap() {
        let marks = target.mailboxes.iter().filter(|(_, owed)| *owed).count();
        *owed.entry(target.subscription.transport.to_string()).or_default() += marks;
    }
    owed.retain(|_, marks| *marks > 0);
    owed
}

/// One service hangs from the start on, as `hang` has it, and is `asked` something. The others get their pushes of
/// that mail and of the next all the same.
async fn the_others_go_on(
    hanging: Kind,
    hang: impl FnOnce(&Services),
    asked: impl Fn(&Services) -> bool,
) {
    limited(async {
        let services = Services::start().await;
        hang(&services);
        let from = &services;
        let all = ALL.iter().flat_map(|kind| (0..EACH).map(move |n| from.subscription(*kind, n)));
        let disk = Disk::with(&all.collect::<Vec<_>>()).await;
        let routes = &services.site.routes;
        let mut running = Running::over(&disk, routes, PushConfig::default());
        // While it stands still no wait for an answer ends.
        let clock = stop_clock();
        let others = ALL.iter().filter(|kind| **kind != hanging);
        for (mail, mailbox) in ["INBOX", "Notes"].into_iter().enumerate() {
            running.mail(mailbox, 2).await;
            until(async || asked(&services)).await;
            for other in others.clone() {
                until(async || services.received(*other) >= (mail + 1) * EACH).await;
            }
        }
        drop(clock);
        resume();
        services.shut(hanging).await;
        running.end().await;
        assert_eq!(owed(&disk).await, BTreeMap::from([(hanging.name().to_owned(), 2 * EACH)]));
        assert_eq!(disk.told().await, rows(2, 2));
    })
    .await;
}

#[tokio::test]
async fn while_apns_hangs_all_others_are_pushed() {
    let hang = |services: &Services| services.apns.answer_all(Answer::Hang);
    the_others_go_on(Kind::Apns, hang, |services| services.received(Kind::Apns) > 0).await;
}

#[tokio::test]
async fn while_fcm_hangs_all_others_are_pushed() {
    let hang = |services: &Services| services.fcm.answer_all(FcmAnswer::Hang);
    the_others_go_on(Kind::Fcm, hang, |services| services.received(Kind::Fcm) > 0).await;
}

#[tokio::test]
async fn while_google_gives_no_access_token_all_others_are_pushed() {
    let hang = |services: &Services| services.fcm.answer_tokens(TokenAnswers::Hang);
    the_others_go_on(Kind::Fcm, hang, |services| services.fcm.tokens().0 > 0).await;
}

#[tokio::test]
async fn while_the_receiver_of_web_hooks_hangs_all_others_are_pushed() {
    let hang = |services: &Services| services.receiver.answer_all(Some(ReceiverAnswer::Hang));
    the_others_go_on(Kind::Webhook, hang, |services| services.received(Kind::Webhook) > 0).await;
}

#[tokio::test]
async fn while_a_push_service_of_browsers_hangs_all_others_are_pushed() {
    let hang = |services: &Services| services.push_service.reply_to_all(Reply::Hang);
    the_others_go_on(Kind::WebPush, hang, |services| services.received(Kind::WebPush) > 0).await;
}

/// Changes a service, or a subscription before the store has it.
type Change = Box<dyn Fn(&Services, &mut Subscription)>;

/// What a push by each transport can be counted as, and what brings it about.
fn outcomes() -> Vec<(Kind, &'static str, Change)> {
    let apns =
        |answer: Answer| -> Change { Box::new(move |it, _| it.apns.answer_all(answer.clone())) };
    let fcm =
        |answer: FcmAnswer| -> Change { Box::new(move |it, _| it.fcm.answer_all(answer.clone())) };
    let hook = |status| -> Change {
        let answer = Some(ReceiverAnswer::Status(status, None));
        Box::new(move |it, _| it.receiver.answer_all(answer.clone()))
    };
    let of_operator = |status| -> Change {
        let answer = hook(status);
        Box::new(move |it, subscription| {
            answer(it, subscription);
            *subscription = it.subscription(Kind::Webhook, 0);
        })
    };
    let browser = |status| -> Change {
        Box::new(move |it, _| it.push_service.reply_to_all(Reply::Status(status, None)))
    };
    let no_secrets = || -> Change { Box::new(|_, subscription| subscription.secrets = None) };
    let no_options: Change = Box::new(|_, device| device.options = "{}".into());
    let tomorrow = Timestamp::now().0 + 86_400_000;
    vec![
        (Kind::Apns, "accepted", apns(Answer::Accept)),
        (Kind::Apns, "gone", apns(Answer::gone(tomorrow))),
        (Kind::Apns, "bad_endpoint", apns(Answer::refuse(400, "BadDeviceToken"))),
        (Kind::Apns, "other_route", apns(Answer::refuse(400, "DeviceTokenNotForTopic"))),
        (Kind::Apns, "too_large", apns(Answer::refuse(413, "PayloadTooLarge"))),
        (Kind::Apns, "refused", apns(Answer::refuse(403, "BadCertificate"))),
        (Kind::Apns, "unrenderable", no_options),
        (Kind::Apns, "too_many", apns(Answer::refuse(429, "TooManyRequests"))),
        (Kind::Apns, "unavailable", apns(Answer::refuse(503, "Shutdown"))),
        (Kind::Fcm, "accepted", fcm(FcmAnswer::Accept)),
        (Kind::Fcm, "gone", fcm(FcmAnswer::refuse(404, "NOT_FOUND", "UNREGISTERED"))),
        (
            Kind::Fcm,
            "bad_endpoint",
            fcm(FcmAnswer::refuse(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH")),
        ),
        (Kind::Fcm, "refused", fcm(FcmAnswer::error(403, "PERMISSION_DENIED", None, "API off"))),
        (
            Kind::Fcm,
            "too_many",
            fcm(FcmAnswer::refuse(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")),
        ),
        (Kind::Fcm, "unavailable", fcm(FcmAnswer::refuse(503, "UNAVAILABLE", "UNAVAILABLE"))),
        (Kind::Webhook, "accepted", hook(204)),
        (Kind::Webhook, "gone", hook(410)),
        (Kind::Webhook, "too_large", hook(413)),
        (Kind::Webhook, "refused", of_operator(401)),
        (Kind::Webhook, "unrenderable", no_secrets()),
        (Kind::Webhook, "too_many", hook(429)),
        (Kind::Webhook, "unavailable", hook(503)),
        (Kind::WebPush, "accepted", browser(201)),
        (Kind::WebPush, "gone", browser(410)),
        (Kind::WebPush, "bad_endpoint", browser(404)),
        (Kind::WebPush, "too_large", browser(413)),
        (Kind::WebPush, "refused", browser(403)),
        (Kind::WebPush, "unrenderable", no_secrets()),
        (Kind::WebPush, "too_many", browser(429)),
        (Kind::WebPush, "unavailable", browser(503)),
    ]
}

/// The series of pushes that are not zero, without their values.
fn counted(text: &str) -> Vec<&str> {
    let series = text.lines().filter_map(|line| line.strip_prefix("mailchime_pushes_total"));
    series
        .filter_map(|it| it.rsplit_once(' '))
        .filter(|(_, n)| *n != "0")
        .map(|(it, _)| it)
        .collect()
}

#[tokio::test]
async fn what_becomes_of_a_push_is_counted_for_its_transport() {
    limited(async {
        let services = Services::start().await;
        for (kind, outcome, change) in outcomes() {
            let (transport, mut subscription) = (kind.name(), services.subscription(kind, 1));
            change(&services, &mut subscription);
            let disk = Disk::with(&[subscription]).await;
            let routes = &services.site.routes;
            let mut running = Running::over(&disk, routes, PushConfig::default());
            running.mail("INBOX", 2).await;
            until(async || !counted(&running.metrics()).is_empty()).await;
            let text = running.metrics();
            let expected = format!("{{transport=\"{transport}\",outcome=\"{outcome}\"}}");
            assert_eq!(counted(&text), [expected]);
            let took =
                format!("mailchime_push_latency_seconds_count{{transport=\"{transport}\"}} 1\n");
            assert_eq!(text.contains(&took), outcome == "accepted", "{text}");
            running.end().await;
        }
    })
    .await;
}

/// The table of `docs/metrics.md` has a cell for each of them and for no other.
#[test]
fn the_outcomes_of_each_transport_are_those_of_the_documents() {
    const DOCS: &str = include_str!("../../../docs/metrics.md");
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim);
    let word = |cell: &'static str| cell.strip_prefix('`')?.strip_suffix('`');
    let mut lines = DOCS.lines().skip_while(|line| !line.starts_with("| outcome | "));
    let kinds: Vec<_> = cells(lines.next().expect("a table of outcomes")).skip(1).collect();
    let mut listed = BTreeSet::new();
    for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
        let mut cells = cells(line);
        let outcome = cells.next().and_then(word).expect("an outcome in backticks");
        let meant = kinds.iter().zip(cells).filter(|(_, meaning)| !meaning.is_empty());
        listed.extend(meant.filter_map(|(kind, _)| word(kind)).map(|kind| (kind, outcome)));
    }
    let tried = outcomes();
    let mut all: BTreeSet<_> =
        tried.iter().map(|(kind, outcome, _)| (kind.name(), *outcome)).collect();
    // Not tried: alice's name is too short for it.
    all.insert(("fcm", "unrenderable"));
    assert_eq!(listed, all);
}
