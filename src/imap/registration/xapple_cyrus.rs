//! A registration at Cyrus, which has the same command and tells of it by its event `ApplePushService`.

use serde::Deserialize;

use super::xapple::{MalformedRegistration, XAppleRegistration};

/// What a device has registered, and at whose session.
#[derive(Debug)]
pub struct CyrusRegistration {
    /// The name with which the user has logged in at Cyrus.
    pub user: String,
    /// What the device asks for, with the mailboxes that Cyrus has found readable.
    pub request: XAppleRegistration,
}

/// The event. Names of mailboxes are as the client wrote them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApplePushService {
    user: String,
    aps_version: u64,
    aps_account_id: String,
    aps_device_token: String,
    aps_subtopic: String,
    #[serde(default)]
    mailboxes: Vec<String>,
}

impl CyrusRegistration {
    /// That of an event, which is JSON.
    ///
    /// # Errors
    /// [`MalformedRegistration`] when it is not what the command allows.
    pub fn of_event(json: &[u8]) -> Result<Self, MalformedRegistration> {
        // The error of the parser could quote it.
        let event: ApplePushService =
            serde_json::from_slice(json).map_err(|_| MalformedRegistration::Arguments)?;
        let names = event.mailboxes.into_iter().map(String::into_bytes).collect();
        let ApplePushService { user, aps_version, aps_account_id, aps_subtopic, .. } = event;
        let token = &event.aps_device_token;
        let request =
            XAppleRegistration::new(aps_version, aps_account_id, token, aps_subtopic, names)?;
        Ok(Self { user, request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Cyrus 3.6.1 has sent it.
    const EVENT: &str = r#"{"event":"ApplePushService","pid":20368,"user":"alice","apsVersion":2,
        "apsAccountId":"0715A26B-CA09-4730-A419-793000CA982E",
        "apsDeviceToken":"2918390218931890821908309283098109381029309829018310983092892829",
        "apsSubtopic":"com.apple.mobilemail","mailboxes":["INBOX","Entw&APw-rfe"]}"#;

    #[test]
    fn an_event_is_the_registration_of_a_device() {
        let of = |json: &str| CyrusRegistration::of_event(json.as_bytes());
        let CyrusRegistration { user, request } = of(EVENT).unwrap();
        assert_eq!((&*user, request.version, request.app()), ("alice", 2, "com.apple.mobilemail"));
        assert_eq!(request.mailboxes, [b"INBOX".to_vec(), b"Entw&APw-rfe".to_vec()]);
        let first = EVENT.replace("\"apsVersion\":2", "\"apsVersion\":1");
        assert_eq!(of(&first).unwrap().request.take_names(), [b"INBOX".to_vec()]);
        for (old, new, expected) in [
            ("\"apsVersion\":2,", "", MalformedRegistration::Arguments),
            ("\"apsVersion\":2", "\"apsVersion\":0", MalformedRegistration::Value("aps-version")),
            ("29183902", "private!", MalformedRegistration::Value("aps-device-token")),
            ("com.apple.mobilemail", "", MalformedRegistration::Value("aps-subtopic")),
            ("0715A26B", "0715\\n", MalformedRegistration::Value("aps-account-id")),
        ] {
            assert_eq!(of(&EVENT.replace(old, new)).unwrap_err(), expected, "{new}");
        }
    }
}
