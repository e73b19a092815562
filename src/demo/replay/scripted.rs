//! A dialogue with mailchime in its middle: real sockets, TLS to the client, and a backend that
//! follows the script.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::{End, Failure, LIMIT, Proxy, differs, push_offer_of};
use crate::config::{self, Config, ListenerTls, RelayedLogins};
use crate::demo::dialogue::{Deed, Dialogue, Difference, Event, Peer, Variables, What};
use crate::demo::pki::Pki;
use crate::imap::capability::Capabilities;
use crate::model::BackendId;
use crate::model::Timestamp;
use crate::net::stream::Stream;
use crate::store::Store;

/// How long an answer is waited for in a dialogue in which one does not come.
const SOON: Duration = Duration::from_secs(2);

/// Plays both ends of a dialogue and compares what they hear.
///
/// # Errors
/// The first difference, or why it could not be played.
pub async fn against_mailchime(dialogue: &Dialogue, pki: &Pki) -> Result<(), Failure> {
    against_mailchime_as(dialogue, pki, |_| {}).await
}

/// The same, with a configuration that `change` may change.
///
/// # Errors
/// `Failure` names the first line that differs.
pub async fn against_mailchime_as(
    dialogue: &Dialogue,
    pki: &Pki,
    change: impl FnOnce(&mut Config),
) -> Result<(), Failure> {
    let settings = &dialogue.settings;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(Failure::broken)?;
    let address = listener.local_addr().map_err(Failure::broken)?;
    let push = settings.push.then(|| push_offer_of(settings));
    let proxy = Proxy::start(address, push, pki, |config| {
        if settings.starttls {
            config.listeners[0].tls = ListenerTls::StartTls;
        }
        if settings.relay {
            config.auth.relay = RelayedLogins::Always;
        }
        if settings.master {
            config.credentials = config::CredentialsMode::Master;
        }
        if dialogue.events.iter().any(|event| event.what == What::Does(Deed::Overdue)) {
            config.limits.answer_timeout = SOON;
        }
        config.backend.send_id = settings.send_id;
        config.backend.checks_token_name = settings.checks_token_name;
        config.backend.names_ignore_case = settings.names_ignore_case;
        change(config);
    })
    .await?;
    if let Some(offered) = &settings.backend {
        proxy.backend.saw(Capabilities::parse(offered.as_bytes()));
    }
    let client = if settings.starttls {
        Stream::Plain(proxy.connect_plain().await?)
    } else {
        Stream::Client(Box::new(proxy.connect().await?))
    };
    let mut stage = Stage {
        listener,
        proxy,
        client: End::new(client),
        backend: None,
        variables: Variables::of(settings),
    };
    // A store that cannot is closed before the registration: its failure has to be there first.
    let fails = dialogue.events.iter().any(|event| event.what == What::Does(Deed::CannotStore));
    for Event { line, what } in &dialogue.events {
        stage.play(*line, what).await?;
        if fails && *what == What::Does(Deed::Connect) {
            stage.proxy.store.close().await;
        }
    }
    stage.end(dialogue).await
}

/// What is on the stage while a dialogue is played.
struct Stage {
    listener: TcpListener,
    proxy: Proxy,
    client: End,
    backend: Option<End>,
    variables: Variables,
}

impl Stage {
    async fn play(&mut self, line: usize, what: &What) -> Result<(), Failure> {
        let (peer, text, says) = match what {
            What::Says(peer, text) => (peer, text, true),
            What::Hears(peer, text) => (peer, text, false),
            What::Does(deed) => return self.does(line, deed).await,
        };
        let end = match (peer, &mut self.backend) {
            (Peer::Client, _) => &mut self.client,
            (Peer::Backend, Some(backend)) => backend,
            (Peer::Backend, None) => {
                return Err(differs(line, "P: connect", "[there is no backend]").into());
            }
        };
        if says {
            // If it has hung up, what comes next tells; a goodbye may be on its way yet.
            let _ = end.say(&text.filled(&mut self.variables)).await;
            return Ok(());
        }
        Ok(end.hear(text, &mut self.variables).await?)
    }

    async fn does(&mut self, line: usize, deed: &Deed) -> Result<(), Failure> {
        match deed {
            Deed::Connect => {
                let stream = Stream::Plain(self.accept(line, "P: connect").await?);
                self.backend = Some(End::new(stream));
            }
            Deed::Unreachable => drop(self.accept(line, "P: unreachable").await?),
            Deed::HangUp => self.backend = None,
            // What it says then shows it.
            Deed::Overdue => {}
            Deed::Handshake => {
                let stream = std::mem::replace(&mut self.client.stream, Stream::Taken);
                let Stream::Plain(stream) = stream else {
                    return Err(differs(line, "P: handshake", "[TLS is active already]").into());
                };
                let stream = self.proxy.handshake(stream).await?;
                self.client.stream = Stream::Client(Box::new(stream));
            }
            Deed::Compress => {
                let stream = std::mem::replace(&mut self.client.stream, Stream::Taken);
                self.client.stream = stream.deflated();
            }
            Deed::Close => {
                let closed = self.client.rest().await;
                closed.map_err(|silence| differs(line, "P: close", silence))?;
            }
            // Looked at in the end: what is in the store then, is.
            Deed::Store(_) | Deed::CannotStore => {}
        }
        Ok(())
    }

    async fn accept(&self, line: usize, expected: &str) -> Result<TcpStream, Failure> {
        match tokio::time::timeout(LIMIT, self.listener.accept()).await {
            Ok(accepted) => Ok(accepted.map_err(Failure::broken)?.0),
            Err(_) => Err(differs(line, expected, "[nobody connects to the backend]").into()),
        }
    }

    /// Nothing more was said than the dialogue has, and what was stored is in the store.
    async fn end(mut self, dialogue: &Dialogue) -> Result<(), Failure> {
        let stored = dialogue.events.iter().rev().find_map(|event| match &event.what {
            What::Does(Deed::Store(mailboxes)) => Some((event.line, mailboxes)),
            _ => None,
        });
        if let Some((line, expected)) = stored {
            let mut expected = expected.clone();
            expected.sort_unstable();
            let stored = stored_mailboxes(&self.proxy.store, self.proxy.backend.id())
                .await
                .map_err(Failure::broken)?;
            if stored != expected {
                let expected = format!("P: store {}", expected.join(", "));
                return Err(differs(line, &expected, stored.join(", ")).into());
            }
        }
        let last = dialogue.events.last().map_or(0, |event| event.line);
        let nothing = |heard: &[u8]| -> Result<(), Difference> {
            match heard {
                [] => Ok(()),
                heard => Err(differs(last, "[nothing more]", heard.escape_ascii())),
            }
        };
        self.client.shutdown().await;
        if let Some(backend) = self.backend.take() {
            nothing(&backend.heard)?;
        }
        let closed = self.client.rest().await;
        nothing(&self.client.heard)?;
        closed.map_err(|silence| differs(last, "[the end of the connection]", silence))?;
        drop(self.client);
        self.proxy.ended().await;
        Ok(())
    }
}

async fn stored_mailboxes(
    store: &Store,
    backend: &BackendId,
) -> Result<Vec<String>, crate::store::StoreError> {
    let mut mailboxes = Vec::new();
    for live in store.accounts(Timestamp(0)).await? {
        for (mailbox, _) in store.watched(&live.account, backend, Timestamp(0)).await? {
            mailboxes.push(mailbox.to_string());
        }
    }
    mailboxes.sort_unstable();
    Ok(mailboxes)
}
