//! The sessions that scripts are played against.

use std::sync::Arc;

use mailchime::imap::capability::Capabilities;
use mailchime::imap::contract::{
    ClientConnection, DomainRoute, Profile, PushOffer, ShownCapabilities,
};

use crate::script::Script;

/// Option 0: no push. Option 1: without TLS. Option 2: mechanisms are relayed, and the backend was
/// seen to have some. Option 3: a master user watches.
pub fn profile(script: &Script) -> Profile {
    let routes = vec![DomainRoute { domain: None, route: Some("com.apple.mail.XServer.x".into()) }];
    let clients = vec!["com.apple.mobilemail".into()];
    let seen = b"IMAP4rev1 LITERAL+ IDLE AUTH=PLAIN AUTH=SCRAM-SHA-256 AUTH=CRAM-MD5 AUTH=XOAUTH2";
    Profile {
        backend: script.option(2).then(|| Arc::new(Capabilities::parse(seen))),
        logins_elsewhere: Default::default(),
        push: (!script.option(0)).then_some(PushOffer { routes, clients, most_mailboxes: 4 }),
        relay_mechanisms: script.option(2),
        master: script.option(3),
        routed: Vec::new(),
        commands: 10_000,
        command_size: 600,
        capability_size: 600,
        compress: true,
        shown: ShownCapabilities::default(),
    }
}

pub fn connection(script: &Script) -> ClientConnection {
    ClientConnection {
        secure: !script.option(1),
        tag_prefix: "mc7x".into(),
        id_fields: vec![("x-originating-ip", "192.0.2.1".into())],
    }
}
