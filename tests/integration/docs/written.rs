//! What the documents tell people to write: command lines of mailchime are taken by the program's own parser, blocks
//! of TOML and keys of the configuration by its reader. Nothing of it is run.

use std::fs;

use clap::error::ErrorKind;
use mailchime::cli;
use mailchime::config::Config;

use super::{Block, SHELLS, blocks, root};

/// What only looks like a command line: a line of the log.
const OF_THE_LOG: [&str; 1] = ["mailchime starts"];

/// A command line in the text, between backquotes: it may leave out what the command needs.
const INLINE: &str = "inline";

/// What lies between backquotes in the texts of all documents, with its place.
fn inline() -> Vec<Block> {
    let mut found = Vec::new();
    for (shown, text) in super::documents() {
        let mut is_block = false;
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim_start().starts_with("```") {
                is_block = !is_block;
            } else if !is_block {
                found.extend(line.split('`').skip(1).step_by(2).map(|code| Block {
                    place: format!("{shown}:{number}"),
                    info: INLINE.to_owned(),
                    text: code.to_owned(),
                    raw: code.to_owned(),
                }));
            }
        }
    }
    found
}

/// The words of a line of the shell, and of each command behind `|`, `;` or `&`.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let (mut quote, mut letters) = (None, line.chars().peekable());
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some('\''), _) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (_, '\\') => word.get_or_insert_default().extend(letters.next()),
            (Some(_), _) => word.get_or_insert_default().push(letter),
            (None, '#') if word.is_none() => break,
            (None, ' ' | '\t' | '|' | ';' | '&' | '(' | ')') => {
                words.extend(word.take());
                if !letter.is_whitespace() {
                    commands.push(std::mem::take(&mut words));
                }
            }
            (None, _) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    commands.push(words);
    commands
}

/// The arguments of mailchime in a command; `None` if it is another program's.
fn of_mailchime(words: &[String]) -> Option<Vec<String>> {
    let is_program = |word: &String| word == "mailchime" || word.ends_with("/bin/mailchime");
    let at = match words {
        [cargo, run, ..] if cargo == "cargo" && run == "run" => {
            words.iter().position(|word| word == "--")?
        }
        [sudo, user, _, name, ..] if sudo == "sudo" && user == "-u" && is_program(name) => 3,
        [sudo, name, ..] if sudo == "sudo" && is_program(name) => 1,
        [name, ..] if is_program(name) => 0,
        // In the container of compose.yaml.
        [docker, ..] if docker == "docker" => {
            words.iter().position(|word| word == "/usr/bin/mailchime")?
        }
        _ => return None,
    };
    Some(words[at + 1..].to_vec())
}

/// Why the program does not take these arguments.
fn refusal(info: &str, arguments: &[String]) -> Option<String> {
    // What is left out.
    if arguments.iter().any(|word| word == "…") {
        return None;
    }
    let line = std::iter::once("mailchime").chain(arguments.iter().map(String::as_str));
    let error = cli::command().try_get_matches_from(line).err()?;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => None,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            if info == INLINE =>
        {
            None
        }
        _ => Some(error.to_string()),
    }
}

#[test]
fn command_lines_are_those_of_the_program() {
    let (mut taken, mut faults) = (0, Vec::new());
    let is_shell = |block: &Block| SHELLS.contains(&block.info.split(' ').next().unwrap());
    let said = |block: &Block| {
        block.text.starts_with("mailchime ") && !OF_THE_LOG.contains(&block.text.as_str())
    };
    let blocks = blocks().into_iter().filter(is_shell);
    for block in blocks.chain(inline().into_iter().filter(said)) {
        for line in block.text.replace("\\\n", " ").lines() {
            for arguments in commands(line).iter().filter_map(|words| of_mailchime(words)) {
                taken += 1;
                let why = refusal(&block.info, &arguments);
                faults.extend(why.map(|why| format!("{}: {line}: {why}", block.place)));
            }
        }
    }
    assert!(taken > 60, "only {taken} command lines are found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_command_line_that_the_program_does_not_take_is_found() {
    let of = |line: &str| -> Vec<_> {
        let commands = commands(line);
        let arguments = commands.iter().filter_map(|words| of_mailchime(words));
        arguments.map(|arguments| refusal("sh not-run", &arguments).is_none()).collect()
    };
    assert_eq!(of("sudo mailchime check && mailchime chekc   # mailchime nothing"), [true, false]);
    assert_eq!(of("cat x | mailchime event --source 'a b' --mailbox INBOX"), [false]);
    assert_eq!(of("sudo -u mailchime mailchime push \"a b\" --explain"), [true]);
    assert_eq!(of("cargo run --release -- demo --twice"), [false]);
    assert_eq!(of("mailchime import xapsd"), [false]);
    assert!(of("echo mailchime check").is_empty());
}

/// What a configuration needs besides, by the table.
const BESIDES: [(&str, &str); 4] = [
    ("[tls]", "certificate = \"server.pem\"\nprivate_key = \"server.key\""),
    ("[backend]", "address = \"127.0.0.1:143\"\ntls = \"none\""),
    ("[[events.source]]", "name = \"dovecot\"\nsecret_file = \"events.secret\""),
    ("[events]", "address = \"127.0.0.1:8144\""),
];

/// Why the configuration's reader does not take this part of one. Its files are there, and empty.
fn fault_of(part: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for line in part.lines() {
        let pair =
            line.split_once(" = \"").and_then(|(key, value)| Some((key, value.split('"').next()?)));
        match pair {
            Some((key, path)) if is_file(key) => {
                text += &format!("{key} = \"{}\"\n", path.replace('/', "-"));
            }
            _ => text += &format!("{line}\n"),
        }
    }
    // Tables of events are only where there is a part of them.
    let needs = |table: &str| match table {
        "[[events.source]]" => text.contains("[events]") && text.contains("\naddress"),
        "[events]" => text.contains("[[events.source]]"),
        _ => true,
    };
    let has =
        |table: &str| text.lines().any(|line| line.split('#').next().unwrap().trim() == table);
    let besides = BESIDES.iter().filter(|(table, _)| !has(table) && needs(table));
    let besides: String = besides.map(|(table, keys)| format!("{table}\n{keys}\n")).collect();
    text += &besides;
    for line in text.lines() {
        if let Some((key, rest)) = line.split_once(" = \"")
            && is_file(key)
        {
            fs::write(folder.path().join(rest.split('"').next().unwrap()), "").unwrap();
        }
    }
    let error = Config::parse(&text, &folder.path().join("proxy.toml")).err()?;
    Some(format!("{error}\n{text}"))
}

/// Whether a key names a file.
fn is_file(key: &str) -> bool {
    matches!(key, "certificate" | "private_key" | "ca") || key.ends_with("_file")
}

#[test]
fn blocks_of_toml_are_read_as_a_configuration() {
    let (mut read, mut faults) = (0, Vec::new());
    for block in blocks().into_iter().filter(|block| block.info == "toml") {
        read += 1;
        faults.extend(fault_of(&block.text).map(|fault| format!("{}: {fault}", block.place)));
    }
    assert!(read >= 15, "only {read} blocks are found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(fault_of("[apsn]\n").is_some() && fault_of("[tls]\nport = 5\n").is_some());
}

/// Keys as texts name them: `[push] devices`, `[backend] send_id = true`.
#[test]
fn keys_in_the_text_are_those_of_the_configuration() {
    let manual = fs::read_to_string(root().join("proxy.toml")).unwrap();
    let (mut read, mut faults) = (0, Vec::new());
    // The list of changes names keys of before.
    let is_of_now = |block: &Block| !block.place.starts_with("CHANGELOG.md:");
    for block in inline().into_iter().filter(is_of_now) {
        let Some((table, rest)) = block.text.split_once("] ") else { continue };
        let Some(table) = table.strip_prefix('[') else { continue };
        let table = table.trim_start_matches('[').trim_end_matches(']');
        let (key, value) = rest.split_once(" = ").unwrap_or((rest, ""));
        if key.contains(|letter: char| {
            !(letter.is_ascii_lowercase() || "_0123456789".contains(letter))
        }) {
            continue;
        }
        read += 1;
        if !has_key(&manual, table, key) {
            faults.push(format!("{}: [{table}] has no {key}", block.place));
        }
        if !value.is_empty() && !manual.contains(&format!("[[{table}]]")) {
            let part = match table {
                "backend" => {
                    let address =
                        ["", "address = \"127.0.0.1:143\"\n"][usize::from(key != "address")];
                    format!("[backend]\n{address}{key} = {value}\n")
                }
                _ => format!("[{table}]\n{key} = {value}\n"),
            };
            // A file, another key or a network that it needs besides is no fault of the text.
            let fault = fault_of(&part).filter(|fault| fault.contains("unknown"));
            faults.extend(fault.map(|fault| format!("{}: {fault}", block.place)));
        }
    }
    assert!(read > 80, "only {read} keys are found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Whether the manual has the key in a table of this name, or in an example of it.
fn has_key(manual: &str, table: &str, key: &str) -> bool {
    let mut inside = false;
    for line in manual.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        // A line that only begins so is a sentence.
        if line.starts_with('[') && line.ends_with(']') {
            inside = line.trim_matches(['[', ']']) == table;
        } else if inside && line.split(" = ").next() == Some(key) {
            return true;
        }
    }
    false
}
