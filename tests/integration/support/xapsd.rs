//! Databases of xapsd, byte for byte in the forms in which its versions write them: Go's `MarshalIndent` by two
//! blanks, and Python's `json.dump` by four for the first.

use mailchime::demo::pki::Pki;

/// The first program, of 2014: users at the top, several devices under an id of an account, no times.
pub(crate) fn first_database(user: &str, token: &str) -> String {
    format!(
        "{{\n    \"{user}\": {{\n        \"accounts\": {{\n            \"FIRST-ID\": {{\n                \
         \"devices\": {{\n                    \"{token}\": {{\n                        \"mailboxes\": [\n\
         {b}\"INBOX\",\n{b}\"Notes\"\n                        ]\n                    }}\n                }}\n\
         \x20           }}\n        }}\n    }}\n}}",
        b = " ".repeat(28),
    )
}

/// Since 2015: a device under an id of an account, without a time.
pub(crate) fn database_without_times(user: &str, token: &str) -> String {
    database(user, &account("OLD-ID", token, None), "")
}

/// Since 2018: with the time of the last registration, as Go writes it. Also what the last versions write.
pub(crate) fn database_with_times(user: &str, id: &str, token: &str, time: &str) -> String {
    database(user, &account(id, token, Some(time)), "")
}

/// Of 2020: with the certificates that Apple gave for an Apple ID and their keys, five of each; that for mail is the
/// third. The key is a new one.
pub(crate) fn database_with_certificate(pki: &Pki, user: &str, token: &str, time: &str) -> String {
    let signature = |certificate: &str| {
        format!(
            "      {{\n        \"Certificate\": [\n          \"{certificate}\"\n        ],\n        \
             \"PrivateKey\": null,\n        \"SupportedSignatureAlgorithms\": null,\n        \
             \"OCSPStaple\": null,\n        \"SignedCertificateTimestamps\": null,\n        \
             \"Leaf\": null\n      }}"
        )
    };
    let key = |key: &str| format!("      \"{key}\"");
    let of_mail = |made: &dyn Fn(&str) -> String, mail: &str| {
        let all = ["AAAA", "AAAA", mail, "AAAA", "AAAA"].map(made);
        all.join(",\n")
    };
    let certificates = format!(
        ",\n  \"AppleCerts\": {{\n    \"Signature\": [\n{}\n    ],\n    \"Keys\": [\n{}\n    ]\n  }}",
        of_mail(&signature, &base64_of(&pki.client.certificate)),
        of_mail(&key, &base64_of(pki.client.expose_private_key())),
    );
    database(user, &account("ID", token, Some(time)), &certificates)
}

fn database(user: &str, account: &str, more: &str) -> String {
    format!(
        "{{\n  \"Users\": {{\n    \"{user}\": {{\n      \"Accounts\": {{\n{account}\n      }}\n    }}\n  \
         }}{more}\n}}"
    )
}

fn account(id: &str, token: &str, time: Option<&str>) -> String {
    let time = time.map(|time| format!(",\n          \"RegistrationTime\": \"{time}\""));
    let time = time.unwrap_or_default();
    format!(
        "        \"{id}\": {{\n          \"DeviceToken\": \"{token}\",\n          \"Mailboxes\": [\n            \
         \"INBOX\",\n            \"Notes\"\n          ]{time}\n        }}"
    )
}

/// What is between the first and the last line of a PEM: the DER in base64.
fn base64_of(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}
