//! What a push costs by Web Push, encryption included, beside one by APNs: the same program in the same run, with as many
//! mails a second for accounts of the one and of the other.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailchime::config::WebPushConfig;
use mailchime::demo::apns::Apns;
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::pki::Pki;
use mailchime::demo::push_service::PushService;
use mailchime::model::Account;
use mailchime::net::guard::Guard;
use mailchime::push::transport::enrol::Enrol;
use mailchime::push::transport::webpush::WebPush;
use mailchime::push::transport::webpush::vapid::VapidKey;
use tokio::net::TcpListener;
use tokio::time::{interval, sleep, timeout};

use super::{MAIL, Options, Program, TOPIC, configure, cpu, device, registrar, start, verdict};

/// Each transport has its turn so often.
const ROUNDS: usize = 3;

/// After so long without a push, no more are to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The world around the program, and the users of each transport.
struct Site {
    backend: DemoBackend,
    apns: Apns,
    push_service: PushService,
    by_apns: Vec<String>,
    by_web_push: Vec<String>,
}

/// What one turn took.
struct Turn {
    pushes: u64,
    seconds: f64,
    cpu: f64,
}

pub(crate) async fn compare(options: &Options) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let pki = Pki::generate(Some(TOPIC))?;
    pki.write_to(folder.path())?;
    let bind = || TcpListener::bind("127.0.0.1:0");
    let port = bind().await?.local_addr()?.port();
    let backend = DemoBackend::start(bind().await?, None)?;
    let apns = Apns::start(bind().await?, &pki)?;
    let push_service = PushService::start(bind().await?, &pki)?;
    let host = format!("localhost:{}", push_service.address().port());
    let web_push = format!(
        "[webpush]\nkey_file = \"webpush.key\"\ncontact = \"mailto:bench@example.org\"\nca = \"ca.pem\"\n\
         hosts = [\"{host}\"]\nallow_private = [\"127.0.0.0/8\", \"::1\"]\n\
         [push]\nmin_interval = \"10ms\"\n"
    );
    configure(folder.path(), options, port, &backend, &apns, &web_push)?;

    let mut site = Site { backend, apns, push_service, by_apns: vec![], by_web_push: vec![] };
    site.register(folder.path(), options.accounts, &host).await?;
    let (program, _) = start(folder.path(), port, options).await?;
    let all = site.backend.wait_until(|counters| counters.idling >= options.accounts);
    timeout(Duration::from_secs(600), all).await?;
    sleep(Duration::from_secs(2)).await;

    let (mut apns, mut web_push) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        apns.push(site.turn(options, &program, false).await?);
        web_push.push(site.turn(options, &program, true).await?);
    }
    let [by_apns, by_web_push] = [("APNs", apns), ("Web Push", web_push)].map(|(name, turns)| {
        let mut each: Vec<_> = turns.iter().map(|it| it.cpu * 1000.0 / it.pushes as f64).collect();
        each.sort_unstable_by(f64::total_cmp);
        let pushes: u64 = turns.iter().map(|it| it.pushes).sum();
        let rate = pushes as f64 / turns.iter().map(|it| it.seconds).sum::<f64>();
        println!(
            "{name}: {pushes} pushes, {rate:.0} a second; ms of CPU each: {:.3}, {:.3}, {:.3} (smallest, median, largest)",
            each[0],
            each[each.len() / 2],
            each[each.len() - 1],
        );
        let wanted = 0.97 * f64::from(options.rate);
        verdict("pushes a second", rate, |rate| rate >= wanted, &format!("{}", options.rate));
        each[each.len() / 2]
    });
    println!("Web Push takes {:.2} of the CPU that APNs takes", by_web_push / by_apns);
    Ok(())
}

impl Site {
    /// Every other account has an iPhone, the others have a browser.
    async fn register(
        &mut self,
        folder: &Path,
        accounts: usize,
        host: &str,
    ) -> Result<(), Box<dyn Error>> {
        let config = WebPushConfig::new(folder.join("webpush.key"), "mailto:bench@example.org");
        let (key, _) = VapidKey::open(&config.key_file, &config.contact)?;
        let host = host.parse().map_err(|()| "not a host")?;
        let guard = Guard::new(&[host], &[]);
        let web_push = WebPush::new(Arc::new(key), Arc::new(guard));
        let registrar = registrar(folder, &self.backend, None).await?;
        for number in 0..accounts {
            let user = format!("user{number}@example.org");
            let subscription = if number % 2 == 0 {
                device(number, &user)?
            } else {
                let browser = self.push_service.subscribe(web_push.public_key());
                web_push.enrol(&Account::from_login(&user), &browser.to_json())?.subscription
            };
            registrar.register(&self.backend, &user, subscription).await?;
            match number % 2 {
                0 => self.by_apns.push(user),
                _ => self.by_web_push.push(user),
            }
        }
        registrar.store.close().await;
        Ok(())
    }

    /// As many mails a second as the options say, for the users of one transport in turn.
    async fn turn(
        &self,
        options: &Options,
        program: &Program,
        web_push: bool,
    ) -> Result<Turn, Box<dyn Error>> {
        let users = if web_push { &self.by_web_push } else { &self.by_apns };
        let received = || match web_push {
            true => self.push_service.received(),
            false => self.apns.received(),
        };
        let (earlier, before, began) = (received(), cpu(program)?, Instant::now());
        let mails = u64::from(options.rate * options.seconds);
        let mut tick = interval(Duration::from_secs(1) / options.rate);
        for user in users.iter().cycle().take(mails.try_into()?) {
            tick.tick().await;
            self.backend.deliver(user, "INBOX", MAIL)?;
        }
        // Mails that come close together share a push, so there may be fewer.
        let (mut last, mut came) = (received(), Instant::now());
        while last < earlier + mails && came.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1)).await;
            if received() > last {
                (last, came) = (received(), Instant::now());
            }
        }
        let (pushes, seconds) = (last - earlier, came.duration_since(began).as_secs_f64());
        sleep(Duration::from_secs(1)).await;
        Ok(Turn { pushes, seconds, cpu: cpu(program)? - before })
    }
}
