//! A real server with a mailbox state that is the same each time, alone or behind mailchime.

use std::net::SocketAddr;
use std::time::Duration;

use mailchime::config::Config;

use crate::support::in_process::{InProcess, implicit_tls};
use crate::support::servers::ALICE;
use crate::support::servers::client::Client;
use crate::support::servers::courier::Courier;
use crate::support::servers::cyrus::Cyrus;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::dovecot24::Dovecot24;
use crate::support::servers::imap4d::Imap4d;

/// The servers of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dovecot,
    Dovecot24,
    Cyrus,
    Courier,
    Imap4d,
}

/// One of them at work.
pub(super) enum Server {
    Dovecot(Dovecot),
    Dovecot24(Dovecot24),
    Cyrus(Cyrus),
    Courier(Courier),
    Imap4d(Imap4d),
}

/// How mailchime speaks to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Plain,
    Tls,
}

// === impl Kind ===

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dovecot => "dovecot",
            Self::Dovecot24 => "dovecot24",
            Self::Cyrus => "cyrus",
            Self::Courier => "courier",
            Self::Imap4d => "imap4d",
        }
    }

    /// What the name of a new mailbox begins with.
    pub(super) fn prefix(self) -> &'static str {
        if self == Self::Courier { "INBOX." } else { "" }
    }

    /// The name that alice logs in by.
    pub(super) fn login(self) -> String {
        if self == Self::Imap4d { Imap4d::login_name(ALICE.0) } else { ALICE.0.to_owned() }
    }

    /// Whether it sees new mail only when a second has passed since it last looked, and tells of it
    /// whenever that is.
    pub(super) fn tells_by_the_clock(self) -> bool {
        self == Self::Imap4d
    }

    pub(super) fn has_move(self) -> bool {
        matches!(self, Self::Dovecot | Self::Dovecot24 | Self::Cyrus)
    }

    /// `None` where it cannot run, which has been said.
    pub(super) fn start(self, test: &str) -> Option<Server> {
        Some(match self {
            Self::Dovecot => Server::Dovecot(Dovecot::start(test, &Options::default())?),
            Self::Dovecot24 => Server::Dovecot24(Dovecot24::start(test, "", &[])?),
            Self::Cyrus => Server::Cyrus(Cyrus::start(test)?),
            Self::Courier => Server::Courier(Courier::start(test)?),
            Self::Imap4d => Server::Imap4d(Imap4d::start(test)?),
        })
    }
}

// === impl Server ===

impl Server {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Dovecot(_) => Kind::Dovecot,
            Self::Dovecot24(_) => Kind::Dovecot24,
            Self::Cyrus(_) => Kind::Cyrus,
            Self::Courier(_) => Kind::Courier,
            Self::Imap4d(_) => Kind::Imap4d,
        }
    }

    pub(super) fn plain(&self) -> SocketAddr {
        match self {
            Self::Dovecot(server) => server.plain,
            Self::Dovecot24(server) => server.plain,
            Self::Cyrus(server) => server.plain,
            Self::Courier(server) => server.plain,
            Self::Imap4d(server) => server.plain,
        }
    }

    pub(super) fn tls(&self) -> SocketAddr {
        match self {
            Self::Dovecot(server) => server.tls,
            Self::Dovecot24(server) => server.tls,
            Self::Cyrus(server) => server.tls,
            Self::Courier(server) => server.tls,
            Self::Imap4d(server) => server.tls,
        }
    }

    /// Delivers a mail into alice's INBOX as the server's own delivery does.
    pub(super) fn deliver(&self, mail: &[u8]) {
        match self {
            Self::Dovecot(server) => server.deliver_by_lmtp(ALICE.0, mail),
            Self::Dovecot24(server) => server.deliver(ALICE.0, mail),
            Self::Cyrus(server) => server.deliver(ALICE.0, mail),
            Self::Courier(server) => server.deliver(ALICE.0, "INBOX", mail),
            Self::Imap4d(server) => server.deliver(ALICE.0, mail),
        }
    }

    /// A connection of alice's without anything between.
    pub(super) fn client(&self) -> Client {
        let mut client = Client::connect(self.plain());
        let answer = client.login((&self.kind().login(), ALICE.1));
        assert!(answer.starts_with("x OK"), "{answer}");
        client
    }

    /// Makes the state that all cells begin with: three mails in INBOX, one in Team.
    pub(super) fn seed(&self) {
        let mut client = self.client();
        let team = format!("{}Team", self.kind().prefix());
        let created = client.ask(&format!("CREATE {team}")).pop().unwrap();
        assert!(created.starts_with("x OK"), "{created}");
        for (mailbox, number, mail) in [
            ("INBOX", 1, SHORT),
            ("INBOX", 2, ALTERNATIVES),
            ("INBOX", 3, MISLEADING),
            (&team, 4, SHORT),
        ] {
            let mail = mail.replace("{number}", &number.to_string()).replace('\n', "\r\n");
            client.say(&format!(
                "x APPEND {mailbox} () \"0{number}-Mar-2026 10:20:30 +0000\" {{{}}}",
                mail.len()
            ));
            client.until("+");
            client.say(&mail);
            client.until("x OK");
        }
        client.ask("LOGOUT");
    }
}

const SHORT: &str = "Message-ID: <{number}@matrix.example.org>
Date: Sun, 1 Mar 2026 10:20:30 +0000
From: Ann <ann@example.org>
To: alice@example.org
Subject: needle

Hi there.
";

const ALTERNATIVES: &str = "Message-ID: <{number}@matrix.example.org>
Date: Sun, 1 Mar 2026 10:20:30 +0000
From: =?utf-8?q?J=C3=BCrgen?= <j@example.org>
To: alice@example.org
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= \"quoted\" back\\slash
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary=\"b\"

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Grüße
--b
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<p>Gr=C3=BC=C3=9Fe</p>
--b--
";

/// Looks like IMAP in each line.
const MISLEADING: &str = "Message-ID: <{number}@matrix.example.org>
Date: Sun, 1 Mar 2026 10:20:30 +0000
From: Ann <ann@example.org>
To: alice@example.org
Subject: misleading {12}

* CAPABILITY IMAP4rev1 STARTTLS COMPRESS=DEFLATE
* OK [CAPABILITY STARTTLS] x
+ go ahead
here comes one {12}
{99999999+}
~{5}
* BYE
)
";

// === mailchime ===

/// mailchime in front of a server.
pub(super) async fn in_front_of(server: &Server, behind: Behind) -> InProcess {
    let address = if behind == Behind::Tls { server.tls() } else { server.plain() };
    before(address, behind).await
}

/// In front of whatever is at this address.
pub(super) async fn before(backend: SocketAddr, behind: Behind) -> InProcess {
    let change = |config: &mut Config| {
        if behind == Behind::Tls {
            implicit_tls(config, "localhost");
        }
        // The least that a configuration file may ask for.
        config.watch.poll_interval = Duration::from_secs(1);
    };
    InProcess::pushing(backend, change).await
}
