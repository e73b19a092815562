//! What is written to a device: the notification that iOS Mail expects (PROTOCOL.md section 2).
//!
//! Pure: no socket, no clock. The options and the interface to the client are those of the a2
//! crate; its own payload type cannot carry `account-id` and `m`.

use std::fmt;

use a2::request::notification::{CollapseId, NotificationOptions, PushType};
use a2::request::payload::PayloadLike;
use md5::{Digest, Md5};
use serde::Serialize;

use crate::imap::registration::xapple::ApnsOptions;
use crate::model::{Mailbox, Subscription, hex};

/// How many mailboxes one notification can name. With an account id of 128 bytes, each of them
/// escaped, 100 hashes stay under the 4096 bytes that APNs accepts; a device with more changes gets
/// another notification.
pub const MAX_MAILBOXES: usize = 100;

/// A notification for one device. `Debug` shows the token shortened.
#[derive(Serialize)]
pub struct MailPush<'a> {
    aps: Aps,
    #[serde(skip)]
    options: NotificationOptions<'a>,
    #[serde(skip)]
    device: &'a Subscription,
}

/// The headers that are the same for each notification (PROTOCOL.md section 2).
#[derive(Debug)]
pub struct Headers<'a> {
    /// `apns-id`: a UUID.
    pub id: &'a str,
    /// `apns-push-type`.
    pub push_type: PushType,
    /// `apns-expiration`: seconds since 1970.
    pub expiration: u64,
    /// `apns-collapse-id`: at most 64 bytes.
    pub collapse_id: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Aps {
    #[serde(rename = "account-id")]
    account_id: String,
    #[serde(rename = "m", skip_serializing_if = "Vec::is_empty")]
    mailboxes: Vec<String>,
}

/// The name of a mailbox as `m` carries it: upper-case hex MD5 of the decoded name in UTF-8.
pub fn mailbox_hash(mailbox: &Mailbox) -> String {
    hex(&Md5::digest(mailbox.as_str())).to_ascii_uppercase()
}

/// What makes a push replace an undelivered one for the same mail account of a device: the device's
/// own name of the account, or a hash of one that is longer than 64 bytes.
/// `None` if it cannot be read.
pub fn collapse_id(device: &Subscription) -> Option<String> {
    let account_id = ApnsOptions::from_json(&device.options)?.account_id;
    Some(match account_id.len() {
        ..=64 => account_id,
        _ => hex(&Md5::digest(&account_id)).to_ascii_uppercase(),
    })
}

/// Whether a push can tell the device of INBOX and of no other mailbox: it registered with version 1.
pub(crate) fn hears_of_inbox_alone(device: &Subscription) -> bool {
    ApnsOptions::from_json(&device.options).is_some_and(|options| options.version < 2)
}

impl<'a> MailPush<'a> {
    /// Tells `device` that `changed` have changed: the first [`MAX_MAILBOXES`] of them.
    ///
    /// For INBOX alone, and for any change to a device that registered with version 1, the account id
    /// suffices. As soon as another mailbox is among them the payload names *all*, since the device
    /// looks at nothing else. `None` if its options cannot be read.
    pub fn new<'m>(
        device: &'a Subscription,
        changed: impl IntoIterator<Item = &'m Mailbox>,
        headers: Headers<'a>,
    ) -> Option<Self> {
        let ApnsOptions { account_id, version } = ApnsOptions::from_json(&device.options)?;
        let changed: Vec<&Mailbox> = changed.into_iter().take(MAX_MAILBOXES).collect();
        let inbox_alone = version < 2 || changed.iter().all(|mailbox| mailbox.is_inbox());
        let mailboxes = match inbox_alone {
            true => Vec::new(),
            false => changed.into_iter().map(mailbox_hash).collect(),
        };
        Some(Self {
            aps: Aps { account_id, mailboxes },
            options: NotificationOptions {
                apns_id: Some(headers.id),
                apns_push_type: Some(headers.push_type),
                apns_expiration: Some(headers.expiration),
                // The client's to say: a2 knows no priority 1.
                apns_priority: None,
                apns_topic: Some(&device.route),
                apns_collapse_id: headers.collapse_id.and_then(|id| CollapseId::new(id).ok()),
            },
            device,
        })
    }
}

/// A push to a device that cannot be, which APNs answers with `BadDeviceToken` if nothing else is
/// wrong.
#[derive(Debug, Serialize)]
pub struct Probe<'a> {
    aps: Nothing,
    #[serde(skip)]
    options: NotificationOptions<'a>,
}

#[derive(Debug, Serialize)]
struct Nothing {}

impl<'a> Probe<'a> {
    /// The test push for this topic.
    pub fn new(topic: &'a str) -> Self {
        let options = NotificationOptions {
            apns_push_type: Some(PushType::Background),
            apns_topic: Some(topic),
            ..NotificationOptions::default()
        };
        Self { aps: Nothing {}, options }
    }
}

impl PayloadLike for Probe<'_> {
    fn get_device_token(&self) -> &str {
        "0000000000000000000000000000000000000000000000000000000000000000"
    }

    fn get_options(&self) -> &NotificationOptions<'_> {
        &self.options
    }
}

impl PayloadLike for MailPush<'_> {
    fn get_device_token(&self) -> &str {
        self.device.endpoint.as_given()
    }

    fn get_options(&self) -> &NotificationOptions<'_> {
        &self.options
    }
}

impl fmt::Debug for MailPush<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MailPush")
            .field("aps", &self.aps)
            .field("options", &self.options)
            .field("token", &self.device.endpoint)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imap::registration::xapple::{DeviceToken, XAppleRegistration};
    use crate::model::Account;

    const ID: &str = "0715A26B-CA09-4730-A419-793000CA982E";

    fn device(version: u8) -> Subscription {
        device_with(version, ID)
    }

    fn device_with(version: u8, account_id: &str) -> Subscription {
        XAppleRegistration {
            version,
            account_id: account_id.into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(Account::from_login("alice@example.org"), "com.apple.mail.XServer.1")
    }

    fn json(device: &Subscription, names: &[&str]) -> String {
        let changed: Vec<_> = names.iter().map(|name| Mailbox::new(name)).collect();
        let headers =
            Headers { id: ID, push_type: PushType::Background, expiration: 1, collapse_id: None };
        MailPush::new(device, &changed, headers).unwrap().to_json_string().unwrap()
    }

    #[test]
    fn mailboxes_are_named_by_the_md5_of_the_decoded_name() {
        for (name, hash) in [
            ("INBOX", "7E33429F656F1E6E9D79B29C3F82C57E"),
            ("inbox", "7E33429F656F1E6E9D79B29C3F82C57E"),
            ("Entwürfe", "6935862F74F620598B6B2549C202AAFA"),
        ] {
            assert_eq!(mailbox_hash(&Mailbox::new(name)), hash, "{name}");
        }
    }

    /// Naming one mailbox of several makes the device skip the others.
    #[test]
    fn inbox_alone_is_the_account_id_alone_and_several_mailboxes_are_all_named() {
        const INBOX: &str = "7E33429F656F1E6E9D79B29C3F82C57E";
        let alone = format!(r#"{{"aps":{{"account-id":"{ID}"}}}}"#);
        let notes = mailbox_hash(&Mailbox::new("Notes"));
        assert_eq!(json(&device(2), &["INBOX"]), alone);
        assert_eq!(json(&device(1), &["INBOX"]), alone);
        assert_eq!(json(&device(1), &["INBOX", "Notes"]), alone);
        assert_eq!(
            json(&device(2), &["INBOX", "Notes"]),
            format!(r#"{{"aps":{{"account-id":"{ID}","m":["{INBOX}","{notes}"]}}}}"#)
        );
        assert_eq!(
            json(&device(2), &["Notes"]),
            format!(r#"{{"aps":{{"account-id":"{ID}","m":["{notes}"]}}}}"#)
        );
    }

    #[test]
    fn the_largest_payload_is_within_what_apns_accepts() {
        let device = device_with(2, &"\"".repeat(128));
        let names: Vec<_> = (0..500).map(|n| format!("folder {n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let json = json(&device, &names);
        assert!(json.len() <= 4096, "{}", json.len());
        assert_eq!(json.matches(',').count(), MAX_MAILBOXES);
    }

    /// What a phone sent is escaped, and no collapse id can be too long.
    #[test]
    fn an_account_id_cannot_leave_its_string_and_a_collapse_id_is_short() {
        const ODD: &str = r#"","x":"\"#;
        let device = device_with(2, ODD);
        assert_eq!(json(&device, &["INBOX"]), r#"{"aps":{"account-id":"\",\"x\":\"\\"}}"#);
        let long = device_with(2, &"x".repeat(128));
        for (device, expected) in [(&device, ODD), (&long, &*collapse_id(&long).unwrap())] {
            let id = collapse_id(device).unwrap();
            let headers = Headers {
                id: ID,
                push_type: PushType::Background,
                expiration: 1,
                collapse_id: Some(&id),
            };
            let push = MailPush::new(device, [], headers).unwrap();
            let found = push.get_options().apns_collapse_id.as_ref().unwrap();
            assert_eq!(found.value, expected);
        }
        let headers =
            Headers { id: ID, push_type: PushType::Background, expiration: 1, collapse_id: None };
        let push = MailPush::new(&device, [], headers).unwrap();
        assert!(push.get_options().apns_collapse_id.is_none());
        let shown = format!("{push:?}");
        assert!(!shown.contains(&"ab".repeat(5)) && shown.contains("abababab…"), "{shown}");
    }
}
