//! What is of one push service alone is named where that service is, and nowhere else.

use super::sources;
use super::tokens::skipped;

/// Words of APNs, as they are in code without its underscores.
const WORDS: &[&str] = &["apns", "topic", "accountid", "devicetoken"];

/// Files that have such words, by how their paths begin below `src`, each with the reason. None is added for what a
/// transport can say itself.
const MAY: &[(&str, &str)] = &[
    ("push/transport/apns/", "the transport"),
    ("push/transport/mod.rs", "says where it is"),
    ("push/transport/check.rs", "asks each transport"),
    ("push/transport/webpush/", "Web Push has a header of this name (RFC 8030 section 5.4)"),
    ("push/transport/fcm/", "FCM has a topic and a variant for APNs of its own"),
    ("imap/registration/xapple", "the command by which iPhones register"),
    ("config/apns.rs", "its configuration"),
    ("config/mod.rs", "names each table of the configuration"),
    ("config/push.rs", "says what APNs refuses"),
    ("config/raw.rs", "names each table of the configuration"),
    ("config/tests.rs", "reads each table of the configuration"),
    ("config/webpush.rs", "its test reads the warning about a missing table"),
    ("app/apns.rs", "composes what is of APNs"),
    ("app/mod.rs", "says where that is"),
    ("app/reload.rs", "names each table of the configuration"),
    ("demo/", "its stand-in"),
    ("cli/demo.rs", "shows what the stand-in got"),
    ("cli/certs.rs", "makes certificates for the stand-in"),
    ("cli/replay.rs", "plays dialogues with iPhones"),
    ("cli/import", "takes over what iPhones registered elsewhere"),
    ("cli/setup/", "says where Apple's certificate goes"),
    ("store/sql/schema.rs", "reads databases of before"),
    ("store/batches.rs", "its tests store what iPhones register"),
    ("store/rotation.rs", "its tests store what iPhones register"),
];

#[test]
fn what_is_of_apns_is_named_where_apns_is() {
    let root = format!("{}/src/", env!("CARGO_MANIFEST_DIR"));
    let mut faults = Vec::new();
    let mut used = vec![false; MAY.len()];
    for file in sources() {
        let name = file.name.strip_prefix(&root).unwrap();
        // Operators read there as help what is written as comments.
        let help = if name.starts_with("cli/") { help(&file.text) } else { String::new() };
        let Some(word) = word_of_apns(&file.text).or_else(|| word_in(&help)) else { continue };
        match MAY.iter().position(|(may, _)| name.starts_with(may)) {
            Some(place) => used[place] = true,
            None => faults.push(format!("src/{name} says `{word}`: leave it to the transport")),
        }
    }
    let unused = MAY.iter().zip(used).filter(|(_, used)| !used);
    faults.extend(unused.map(|((may, _), _)| format!("src/{may} has no such word: take it away")));
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn words_in_strings_and_names_are_found_and_those_in_comments_are_not() {
    for (text, expected) in [
        ("let device_token = 1;", Some("devicetoken")),
        ("struct DeviceToken;", Some("devicetoken")),
        ("\"the topic // is\"", Some("topic")),
        ("fn f() {} // APNs", None),
        ("/* a topic */ fn f(token: &str) {}", None),
        ("let url = \"https://x\"; // account_id", None),
    ] {
        assert_eq!(word_of_apns(text), expected, "{text}");
    }
    let documented = "    /// What APNs says\n    Push,\n    // a topic\n";
    assert_eq!(word_in(&help(documented)), Some("apns"));
    assert_eq!(word_in(&help("// a topic\nPush,")), None);
}

fn word_of_apns(text: &str) -> Option<&'static str> {
    word_in(&code(text))
}

fn word_in(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase().replace('_', "");
    WORDS.iter().copied().find(|word| text.contains(word))
}

/// The documentation of all items.
fn help(text: &str) -> String {
    text.lines().filter_map(|line| line.trim_start().strip_prefix("///")).collect()
}

/// The text without its comments.
fn code(text: &str) -> String {
    let (mut code, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest).unwrap_or(first.len_utf8());
        if !rest.starts_with("//") && !rest.starts_with("/*") {
            code.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    code
}
