use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use base64::prelude::BASE64_STANDARD;

use super::keys::KEY_LEN;
use super::*;
use crate::model::{PushEndpoint, TransportId};

fn credentials() -> Credentials {
    Credentials::password("alice@example.org", b"p\xffss\0 w\r\n\xc3\xb6rd".to_vec())
}

/// A vault and the folder of its file.
fn vault(byte: u8) -> (Vault, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.key");
    write(&path, 0o600, &BASE64_STANDARD.encode([byte; KEY_LEN]));
    (Vault::open(&path).unwrap(), folder)
}

fn write(path: &Path, mode: u32, text: &str) {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_was_sealed_opens_for_its_account_alone() {
    let (vault, _folder) = vault(1);
    let master = Credentials::password("master", b"m".to_vec()).acting_as("bob@example.org");
    let empty = Credentials::password("", Vec::new());
    for credentials in [credentials(), master, empty] {
        let sealed = vault.seal(&credentials.account(), &credentials);
        assert!(vault.unseal(&credentials.account(), &sealed).unwrap().same_as(&credentials));
        let other = Account::from_login("mallory@example.org");
        let refused = vault.unseal(&other, &sealed);
        assert!(matches!(refused, Err(VaultError::Damaged { .. })), "{refused:?}");
    }
}

#[test]
fn two_seals_of_the_same_differ() {
    let (vault, _folder) = vault(1);
    assert_ne!(
        vault.seal(&credentials().account(), &credentials()),
        vault.seal(&credentials().account(), &credentials())
    );
}

#[test]
fn another_key_is_told_from_damage() {
    let sealed = vault(1).0.seal(&credentials().account(), &credentials());
    let refused = vault(2).0.unseal(&credentials().account(), &sealed).unwrap_err();
    assert!(matches!(refused, VaultError::OtherKey { .. }), "{refused:?}");
    assert!(refused.to_string().contains("test.key"), "{refused}");
}

#[test]
fn every_alteration_is_refused() {
    let (vault, _folder) = vault(1);
    let account = credentials().account();
    let sealed = vault.seal(&credentials().account(), &credentials());
    for at in 0..sealed.len() {
        let mut altered = sealed.clone().into_bytes();
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(altered).unwrap();
        assert!(vault.unseal(&account, &altered).is_err(), "byte {at}: {altered}");
        assert!(vault.unseal(&account, &sealed[..at]).is_err(), "cut at {at}");
    }
    for bad in ["", ".", "v1", "v1.", "v2.00000000.AAAA", &sealed.replace("v1.", "v2.")] {
        let refused = vault.unseal(&account, bad);
        assert!(matches!(refused, Err(VaultError::Damaged { .. })), "{bad}: {refused:?}");
    }
}

#[test]
fn a_missing_key_file_is_made_for_its_owner_and_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials.key");
    let sealed = Vault::open(&path).unwrap().seal(&credentials().account(), &credentials());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    let again = Vault::open(&path).unwrap();
    assert!(again.unseal(&credentials().account(), &sealed).unwrap().same_as(&credentials()));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn creating_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials.key");
    write(&path, 0o600, "the other program was faster");
    create(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "the other program was faster");
}

#[test]
fn a_key_file_that_others_can_use_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [0o640, 0o604, 0o620, 0o644] {
        let path = folder.path().join(format!("{mode:o}.key"));
        write(&path, mode, &BASE64_STANDARD.encode([7; KEY_LEN]));
        let refused = Vault::open(&path).unwrap_err().to_string();
        assert!(refused.contains(&format!("chmod 600 {}", path.display())), "{refused}");
    }
}

#[test]
fn a_malformed_key_file_is_refused_without_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let key = BASE64_STANDARD.encode([7; KEY_LEN]);
    let texts = [
        String::new(),
        "# only a comment\n".into(),
        "c2VjcmV0".into(),
        format!("{key}\n{key}\n"),
        [1, 2, 3].map(|byte| BASE64_STANDARD.encode([byte; KEY_LEN])).join("\n"),
        format!("{key}x"),
        BASE64_STANDARD.encode([7; 33]),
    ];
    for (number, text) in texts.iter().enumerate() {
        let path = folder.path().join(format!("{number}.key"));
        write(&path, 0o600, text);
        let refused = Vault::open(&path).unwrap_err();
        let shown = format!("{refused} {refused:?}");
        assert!(shown.contains(&format!("{number}.key")), "{shown}");
        assert!(!shown.contains("c2VjcmV0") && !shown.contains(&key), "{shown}");
    }
    let path = folder.path().join("good.key");
    write(&path, 0o400, &format!("# a comment\n\n  {key}  \n# another\n"));
    Vault::open(&path).unwrap();
    let nowhere = Vault::open(&folder.path().join("no/such.key")).unwrap_err().to_string();
    assert!(nowhere.contains("no/such.key") && nowhere.contains("folder"), "{nowhere}");
}

#[test]
fn debug_shows_no_key() {
    let shown = format!("{:?}", vault(7).0);
    assert!(shown.contains("test.key") && !shown.contains("7, 7"), "{shown}");
    assert!(!shown.contains(&BASE64_STANDARD.encode([7; KEY_LEN])[..8]), "{shown}");
}

#[test]
fn the_secrets_of_a_subscription_open_for_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::open(&folder.path().join("key")).unwrap();
    let key = |account: &str, transport: &str, endpoint: &str| SubscriptionKey {
        account: Account::from_login(account),
        transport: TransportId::new(transport),
        endpoint: PushEndpoint::new(endpoint, endpoint),
        app: "".into(),
    };
    let own = key("alice", "web", "https://push.example/1");
    let sealed = vault.seal_secrets(&own, &SubscriptionSecrets::new("auth".to_owned()));
    assert_eq!(vault.unseal_secrets(&own, &sealed).unwrap().expose(), "auth");
    for other in [
        key("bob", "web", "https://push.example/1"),
        key("alice", "fcm", "https://push.example/1"),
        key("alice", "web", "https://push.example/2"),
    ] {
        let error = vault.unseal_secrets(&other, &sealed).unwrap_err();
        assert!(matches!(error, VaultError::Damaged { .. }), "{error}");
    }
    assert!(vault.unseal(&own.account, &sealed).is_err(), "they are no credentials");
}
