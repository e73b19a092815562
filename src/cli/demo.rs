//! `mailchime demo`: everything on loopback, a push within seconds, no setup.
//!
//! Real parts on real sockets: mailchime with its web app, a small IMAP server in memory, stand-ins for APNs and
//! for the push service of browsers, and a scripted phone. All files are in a temporary folder that goes away at
//! the end.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpListener;
use tokio::net::unix::pipe;
use tokio::signal::unix::SignalKind;

use super::{CommandFailure, Signals, logging, runtime, say};
use crate::app;
use crate::config::{self, Config, LogFormat, WebPushConfig};
use crate::demo::apns::{Apns, Push};
use crate::demo::backend::DemoBackend;
use crate::demo::firefox_profile;
use crate::demo::phone::{self, Direction, Phone};
use crate::demo::pki::Pki;
use crate::demo::push_service::{FirefoxDoor, PushService, PushedMessage};

/// All that is secret here is public.
const LOGIN: &str = "alice";
const PASSWORD: &str = "wonder land";

/// The folder of Firefox's profile.
const PROFILE: &str = "firefox";

/// The first push must come within this time.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct DemoOptions {
    /// End after the first push
    #[arg(long)]
    once: bool,

    /// Deliver a mail to the demo that runs elsewhere; it prints the address
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "once", value_parser = host_and_port)]
    deliver: Option<String>,
}

pub(super) fn run(options: &DemoOptions) -> Result<(), CommandFailure> {
    logging::init(LogFormat::Text, "warn")
        .map_err(|error| CommandFailure::Usage(error.to_string()))?;
    if let Some(address) = &options.deliver {
        return runtime()?.block_on(deliver(address));
    }
    let folder = tempfile::Builder::new()
        .prefix("mailchime-demo-")
        .tempdir()
        .map_err(|error| CommandFailure::Failed(format!("no temporary folder: {error}")))?;
    let runtime = runtime()?;
    let told = runtime.block_on(show(folder.path(), options.once));
    // To remove a folder takes a file descriptor. If there are none left, the runtime has them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let path = folder.path().display().to_string();
    let removed = folder.close();
    told?;
    removed.map_err(|error| CommandFailure::Failed(format!("{path} could not be removed: {error}")))
}

/// `HOST:PORT`, as far as it is known without looking the host up.
fn host_and_port(text: &str) -> Result<String, &'static str> {
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    match !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) {
        true => Ok(text.to_owned()),
        false => Err("give the address of the IMAP server that the demo printed"),
    }
}

async fn deliver(address: &str) -> Result<(), CommandFailure> {
    phone::deliver(address, LOGIN, PASSWORD, "INBOX", "Another mail").await.map_err(|error| {
        CommandFailure::Failed(format!(
            "no mail was delivered to {address}: {error}; does a demo run there?"
        ))
    })?;
    say("Delivered. Look at the other terminal.");
    Ok(())
}

async fn show(folder: &Path, once: bool) -> Result<(), CommandFailure> {
    let paint = Paint { colours: logging::colours(std::io::stdout().is_terminal()) };
    let mut signals =
        Signals::new(&[SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()])?;
    let world = World::start(folder).await?;
    let told = tokio::select! {
        told = world.tell(folder, once, &paint) => told,
        () = signals.next() => match once {
            true => Err(CommandFailure::Failed("ended before the push came".into())),
            false => {
                say("\nGoodbye.");
                Ok(())
            }
        },
        // As with `| head -3`.
        () = nobody_reads() => Ok(()),
    };
    tokio::select! {
        () = world.mailchime.stop() => {}
        () = signals.next() => {}
    }
    told
}

/// Waits until nobody reads what is shown any more: a pipe that has lost its reader, or a terminal that is gone.
async fn nobody_reads() {
    let shown = std::io::stdout().as_fd().try_clone_to_owned();
    match shown.and_then(pipe::Sender::from_owned_fd_unchecked) {
        Ok(shown) => drop(shown.ready(Interest::ERROR).await),
        // A file, which needs no reader.
        Err(_) => std::future::pending().await,
    }
}

/// The parts of the demo.
struct World {
    backend: DemoBackend,
    apns: Apns,
    push_service: PushService,
    firefox: FirefoxDoor,
    pki: Pki,
    mailchime: app::Server,
}

impl World {
    async fn start(folder: &Path) -> Result<Self, CommandFailure> {
        let pki = Pki::generate(None).map_err(CommandFailure::failed)?;
        pki.write_to(folder).map_err(CommandFailure::failed)?;
        let backend = DemoBackend::start(bind().await?, None).map_err(CommandFailure::failed)?;
        backend.add_account(LOGIN, PASSWORD.as_bytes());
        backend.create_mailbox(LOGIN, "Notes").map_err(CommandFailure::failed)?;
        let apns = Apns::start(bind().await?, &pki).map_err(CommandFailure::failed)?;
        let push_service =
            PushService::start(bind().await?, &pki).map_err(CommandFailure::failed)?;
        let firefox = push_service.serve_firefox(bind().await?).map_err(CommandFailure::failed)?;
        let file = |name: &str| folder.join(name);
        let mut config = Config::new(
            config::TlsConfig::new(file("server.pem"), file("server.key")),
            config::BackendConfig::new(
                backend.address().ip().to_string(),
                backend.address().port(),
                config::BackendTls::None,
            ),
        );
        config.listeners[0].address = (Ipv4Addr::LOCALHOST, 0).into();
        config.store.url = config::DatabaseUrl::sqlite(&file("mailchime.db"));
        let key_file = file("mailchime.key");
        config.key_file = key_file;
        let mut client = config::ApnsConfig::new(file("apns.pem"), file("apns.key"));
        client.endpoint =
            config::ApnsServer { host: "localhost".into(), port: apns.address().port() };
        client.ca = Some(file("ca.pem"));
        config.apns = vec![client];
        config.api.address = Some((Ipv4Addr::LOCALHOST, 0).into());
        config.web_push = Some(web_push(folder, &push_service)?);
        let mailchime = app::start(&config).await.map_err(CommandFailure::failed)?;
        let world = Self { backend, apns, push_service, firefox, pki, mailchime };
        let (profile, to) = (folder.join(PROFILE), world.firefox.url());
        firefox_profile::write(&profile, &to, &world.pki.server, world.app_port())
            .map_err(CommandFailure::failed)?;
        Ok(world)
    }

    fn address(&self) -> SocketAddr {
        self.mailchime.addresses[0]
    }

    /// Where the web app is, by the name in its certificate.
    fn app(&self) -> String {
        format!("https://localhost:{}/", self.app_port())
    }

    fn app_port(&self) -> u16 {
        self.mailchime.api.map_or(0, |address| address.port())
    }

    /// The first push; then, unless that is all, each that follows, for ever.
    async fn tell(&self, folder: &Path, once: bool, paint: &Paint) -> Result<(), CommandFailure> {
        let mut awaited = "";
        tokio::time::timeout(PATIENCE, self.first_push(paint, &mut awaited)).await.unwrap_or_else(
            |_| Err(CommandFailure::Failed(format!("no push within {PATIENCE:?}: {awaited}"))),
        )?;
        if once {
            return Ok(());
        }
        say(self.hints(folder, paint));
        loop {
            tokio::select! {
                push = self.apns.next() => say(paint.push(&push, None)),
                message = self.push_service.next() => say(paint.message(&message)),
            }
        }
    }

    /// The story: the phone registers and hangs up, a mail arrives, the push comes. `awaited` tells
    /// what has not happened if it comes to no end.
    async fn first_push(
        &self,
        paint: &Paint,
        awaited: &mut &'static str,
    ) -> Result<(), CommandFailure> {
        say(format_args!(
            "mailchime's demo. Everything runs on this machine, nothing leaves it.\n\n  \
             IMAP server, in memory   {}\n  \
             mailchime, TLS           {}\n  \
             APNs stand-in, HTTP/2    {}\n  \
             web app, HTTPS           {}\n  \
             Web Push stand-in        {}\n",
            self.backend.address(),
            self.address(),
            self.apns.address(),
            self.app(),
            self.push_service.origin(),
        ));
        say(paint.title("The phone logs in, registers for push and hangs up:"));
        let phone = Phone {
            login: LOGIN.into(),
            password: PASSWORD.into(),
            account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
            device_token: "8DF2A4C1".repeat(8),
            mailboxes: vec!["INBOX".into(), "Notes".into(), "Somebody else's".into()],
        };
        let heard = |direction, line: &str| say(paint.line(direction, line));
        *awaited = "the phone's registration was not answered";
        phone
            .register(self.address(), "localhost", &self.pki.ca.certificate, heard)
            .await
            .map_err(|error| {
                CommandFailure::Failed(format!("the phone could not register: {error}"))
            })?;
        // Nothing would be lost if the mail came sooner; it is to be seen that nobody is connected
        // but the watcher.
        *awaited = "mailchime does not watch the mailbox";
        self.backend.wait_until(|counters| counters.idling == 1).await;

        say(paint.title("\nNobody is connected. A mail arrives:"));
        let mail = "From: Bob <bob@example.org>\r\nTo: alice@example.org\r\n\
                    Subject: Hello\r\n\r\nDid it chime?\r\n";
        self.backend.deliver(LOGIN, "INBOX", mail).map_err(CommandFailure::failed)?;
        let delivered = Instant::now();
        say("  From Bob, \"Hello\"");
        *awaited = "mailchime has sent nothing to APNs";
        let push = self.apns.next().await;
        say(paint.title("\nAPNs receives this push:"));
        say(paint.push(&push, Some(delivered)));
        Ok(())
    }

    fn hints(&self, folder: &Path, paint: &Paint) -> String {
        let program = std::env::current_exe()
            .map_or_else(|_| "mailchime".into(), |path| path.display().to_string());
        let (address, app, folder) = (self.address(), self.app(), folder.display());
        let title = paint.title("It stays up until Ctrl-C. From a second terminal:");
        format!(
            "\n{title}\n\n  look in (then type: a LOGIN {LOGIN} \"{PASSWORD}\")\n    \
             openssl s_client -quiet -crlf -CAfile {folder}/ca.pem -connect {address}\n\n  \
             be notified in Firefox (log in as {LOGIN} with the password \"{PASSWORD}\", then tap \"Notify this browser\")\n    \
             firefox --new-instance --profile {folder}/{PROFILE} {app}\n\n  \
             deliver another mail\n    {program} demo --deliver {}\n\n\
             That profile of Firefox trusts this demo and takes its push service for Mozilla's. Any other browser warns of\n\
             the certificate, and can log in all the same; it cannot be notified, since its own push service is on the\n\
             Internet and the demo sends nothing there. Close Firefox before you end the demo.\n",
            self.backend.address(),
        )
    }
}

/// Web Push to the stand-in and to nobody else.
fn web_push(folder: &Path, service: &PushService) -> Result<WebPushConfig, CommandFailure> {
    let mut web_push = WebPushConfig::new(folder.join("webpush.key"), "mailto:demo@example.org");
    let host = format!("localhost:{}", service.address().port());
    let unusable = || CommandFailure::Failed(format!("{host} cannot be a push service"));
    web_push.hosts = vec![host.parse().map_err(|()| unusable())?];
    for loopback in ["127.0.0.1", "::1"] {
        web_push.allow_private.push(loopback.parse().map_err(|_| unusable())?);
    }
    web_push.ca = Some(folder.join("ca.pem"));
    Ok(web_push)
}

async fn bind() -> Result<TcpListener, CommandFailure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(|error| CommandFailure::Failed(format!("no port on loopback: {error}")))
}

/// Colours, on a terminal only.
struct Paint {
    colours: bool,
}

impl Paint {
    fn coloured(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn title(&self, text: &str) -> String {
        self.coloured("1", text)
    }

    fn line(&self, direction: Direction, line: &str) -> String {
        match direction {
            Direction::Client => self.coloured("36", &format!("  phone     > {line}")),
            Direction::Server => self.coloured("32", &format!("  mailchime < {line}")),
        }
    }

    fn message(&self, message: &PushedMessage) -> String {
        let header = |name| message.header(name).unwrap_or("-");
        let size = format!("{} bytes, encrypted to the browser", message.size);
        format!(
            "\nThe push service of Firefox receives this:\n  POST {}\n  topic: {}\n  urgency: {}\n  ttl: {}\n{}",
            message.path,
            header("topic"),
            header("urgency"),
            header("ttl"),
            self.coloured("33", &format!("  {size}")),
        )
    }

    fn push(&self, push: &Push, delivered: Option<Instant>) -> String {
        let mut lines = Vec::new();
        let token = push.token.as_ref().map_or("", |token| token.as_given());
        lines.push(format!("  POST /3/device/{token}"));
        for name in ["apns-topic", "apns-push-type", "apns-expiration"] {
            lines.push(format!("  {name}: {}", push.header(name).unwrap_or("-")));
        }
        lines.push(self.coloured("33", &format!("  {}", String::from_utf8_lossy(&push.body))));
        if let Some(delivered) = delivered {
            let taken = push.received.saturating_duration_since(delivered);
            let milliseconds = format!("{:.1} ms", taken.as_secs_f64() * 1000.0);
            let text = format!("  {milliseconds} after the mail was delivered");
            lines.push(self.coloured("1;33", &text));
        }
        lines.join("\n")
    }
}
