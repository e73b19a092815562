//! The lists of the documents are complete: each log event in `docs/logs.md`, each metric in
//! `docs/metrics.md`, each dependency in `docs/development.md`. Each relative link leads to a file, and each file and module that they name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mailchime::metrics::Metrics;
use prometheus_client::registry::Registry;

use crate::floors::{is_word, skipped};

/// The parts that a target may name.
const PARTS: &[&str] = &[
    "proxy",
    "watch",
    "push",
    "store",
    "net",
    "nodes",
    "app",
    "admin",
    "api",
    "intake",
    "config",
    "record",
    "registrar",
];

/// The one target that is older than the list; `contrib/fail2ban` reads it.
const LOGIN_REFUSED: &str = "mailchime::login";

const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The levels and the texts of an event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    levels: BTreeSet<String>,
    texts: BTreeSet<String>,
}

#[test]
fn the_list_of_log_events_is_that_of_the_source() {
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    let (mut logged, mut faults) = (BTreeMap::<String, Event>::new(), Vec::new());
    for path in sources {
        let text = fs::read_to_string(&path).unwrap();
        // Tests come last in a file.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (level, target, text) in events(text) {
            let Some(target) = target else {
                faults.push(format!("{}: {level}: {text:?} has no target", path.display()));
                continue;
            };
            if !is_well_formed(&target) {
                faults.push(format!("{}: {target} is no target", path.display()));
            }
            let event = logged.entry(target).or_default();
            event.levels.insert(level);
            event.texts.insert(text);
        }
    }
    assert!(logged.len() > 100, "only {} events are found", logged.len());

    let mut listed = BTreeMap::<String, Event>::new();
    for [target, levels, texts, meaning] in rows("docs/logs.md") {
        let target = target.trim_matches('`').to_owned();
        if meaning.is_empty() {
            faults.push(format!("docs/logs.md says nothing of {target}"));
        }
        let event = Event {
            levels: levels.split(", ").map(str::to_owned).collect(),
            texts: texts.split(" / ").map(str::to_owned).collect(),
        };
        if listed.insert(target.clone(), event).is_some() {
            faults.push(format!("docs/logs.md lists {target} twice"));
        }
    }
    faults.extend(differences("docs/logs.md", "the source", &listed, &logged));
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The variants of an enum of the source.
fn variants(path: &str, name: &str) -> Vec<String> {
    let source = fs::read_to_string(root().join(path)).unwrap();
    let inside = source.split(&format!("enum {name} {{\n")).nth(1).expect(name);
    let lines = inside.split("\n}").next().unwrap().lines().map(str::trim);
    let variants = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let word = |line: &str| line.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned();
    variants.map(word).collect()
}

/// Where a field of an event shows the variants of an enum.
#[test]
fn the_values_of_fields_are_those_of_the_source() {
    let page = fs::read_to_string(root().join("docs/logs.md")).unwrap();
    for (field, path, name) in
        [("ended", "src/proxy/ended.rs", "Ended"), ("kind", "src/model.rs", "ChangeKind")]
    {
        let table = page.split(&format!("\n| `{field}` | what it means |\n| --- | --- |\n")).nth(1);
        let table = table.unwrap_or_else(|| panic!("docs/logs.md has no table of {field}"));
        let rows = table.lines().take_while(|line| line.starts_with("| `"));
        let listed: BTreeSet<_> =
            rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
        let found: BTreeSet<_> = variants(path, name).into_iter().collect();
        assert!(found.len() > 1, "{name}: {found:?}");
        assert_eq!(listed, found, "docs/logs.md, {field}");
    }
}

#[test]
fn the_list_of_metrics_is_that_of_the_registry() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    // Those that appear with what they are about.
    metrics.transport("transport");
    metrics.watch_limits(|| vec![("sessions", 1)]);
    metrics.watch_certificates(|| vec![("route".to_owned(), SystemTime::now())]);
    metrics.server_certificates(vec![("file".to_owned(), SystemTime::now())], 0);
    let text = metrics.text(&registry);

    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    for (name, help) in helps.map(|line| line.split_once(' ').unwrap_or((line, ""))) {
        assert!(help.len() > 5, "{name} has no help text");
    }

    let mut counted = BTreeMap::<String, (String, BTreeSet<String>)>::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let labels = samples
            .filter_map(|line| line.strip_prefix(name))
            .filter_map(|rest| rest.split_once('{'))
            .filter(|(suffix, _)| ["", "_total", "_bucket", "_sum", "_count"].contains(suffix))
            .flat_map(|(_, labels)| labels.split_once('}').unwrap().0.split("\","))
            .map(|label| label.split_once('=').unwrap().0.to_owned())
            .filter(|label| label != "le")
            .collect();
        counted.insert(shown, (kind.to_owned(), labels));
    }
    assert!(counted.len() > 15, "only {} metrics are found", counted.len());

    let mut listed = BTreeMap::new();
    for [name, kind, labels, meaning] in rows("docs/metrics.md") {
        assert!(!meaning.is_empty(), "docs/metrics.md says nothing of {name}");
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        let name = name.trim_matches('`').to_owned();
        listed.insert(name, (kind, labels));
    }
    let faults = differences("docs/metrics.md", "the registry", &listed, &counted);
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// All documents.
fn documents() -> BTreeSet<PathBuf> {
    let mut documents = Vec::new();
    for folder in [".", "docs", "benches", "fuzz", "fixtures", "contrib", ".github"] {
        files(&root().join(folder), "md", &mut documents);
    }
    documents.into_iter().collect()
}

#[test]
fn the_list_of_dependencies_is_that_of_the_package() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let of_systems = manifest["target"].as_table().unwrap().values();
    let of_systems = of_systems.map(|system| system["dependencies"].as_table().unwrap());
    let tables =
        ["dependencies", "dev-dependencies"].map(|name| manifest[name].as_table().unwrap());
    let used: BTreeSet<_> =
        tables.into_iter().chain(of_systems).flatten().map(|(name, _)| name.as_str()).collect();

    let text = fs::read_to_string(root().join("docs/development.md")).unwrap();
    let (_, table) = text.split_once("| crate | why |\n| --- | --- |\n").unwrap();
    let mut listed = BTreeSet::new();
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let (names, why) = row.trim_matches('|').split_once('|').unwrap();
        assert!(!why.trim().is_empty(), "{row}");
        for name in names.split(',').map(|name| name.trim().trim_end_matches(" (tests only)")) {
            assert!(listed.insert(name), "{name} is listed twice");
        }
    }
    assert_eq!(listed, used);
}

#[test]
fn relative_links_of_documents_lead_to_files() {
    let (mut links, mut faults) = (0, Vec::new());
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            if !to.exists() {
                faults.push(format!("{}: {target} leads nowhere", path.display()));
            } else if !heading.is_empty() && !has_heading(&to, heading) {
                faults.push(format!("{}: {target} has no such heading", path.display()));
            }
        }
    }
    assert!(links > 10, "only {links} links are found");
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Where the Debian package has each file of these sources, by the assets of cargo-deb.
fn packaged() -> BTreeMap<PathBuf, PathBuf> {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let mut packaged = BTreeMap::new();
    for asset in assets {
        let [from, to] = [0, 1].map(|at| asset[at].as_str().unwrap());
        let (folder, name) = from.rsplit_once('/').unwrap_or(("", from));
        let Ok(entries) = fs::read_dir(root().join(folder)) else { continue };
        let (start, end) = name.split_once('*').unwrap_or((name, ""));
        for entry in entries {
            let found = entry.unwrap().file_name().into_string().unwrap();
            let fits = match name.contains('*') {
                true => found.starts_with(start) && found.ends_with(end),
                false => found == name,
            };
            if fits {
                let to = if to.ends_with('/') { Path::new(to).join(&found) } else { to.into() };
                packaged.insert(Path::new(folder).join(&found), to);
            }
        }
    }
    packaged
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part.as_os_str().to_str() {
            Some("..") => drop(plain.pop()),
            Some(".") => {}
            _ => plain.push(part),
        }
        plain
    })
}

#[test]
fn relative_links_of_packaged_documents_lead_to_packaged_files() {
    let packaged = packaged();
    let there: BTreeSet<_> = packaged.values().collect();
    let (mut links, mut faults) = (0, Vec::new());
    for (from, to) in
        packaged.iter().filter(|(from, _)| from.extension().is_some_and(|it| it == "md"))
    {
        let text = fs::read_to_string(root().join(from)).unwrap();
        let of_text = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let of_html = text.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for target in of_text.chain(of_html) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            links += 1;
            if !there.contains(&plain(&to.parent().unwrap().join(file))) {
                faults.push(format!("{}: the package lacks {file}", from.display()));
            }
        }
    }
    assert!(links > 100, "only {links} links are found");
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn files_and_modules_that_documents_name_exist() {
    const FOLDERS: [&str; 7] =
        ["src/", "tests/", "fixtures/", "benches/", "contrib/", "fuzz/", "docs/"];
    let (mut named, mut faults) = (0, Vec::new());
    for document in documents() {
        // Elsewhere the same form is that of a log event.
        let of_the_code = document.ends_with("docs/DESIGN.md")
            || document.ends_with("docs/development.md")
            || document.parent().is_some_and(|folder| folder.ends_with("docs/development"));
        let text = fs::read_to_string(&document).unwrap();
        for quoted in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            // Capitals stand for a name to be chosen, or are those of a type.
            let plain =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"/._-:".contains(&b);
            if !quoted.bytes().all(plain) {
                continue;
            }
            let exists = if FOLDERS.iter().any(|folder| quoted.starts_with(folder)) {
                root().join(quoted).exists() || document.with_file_name(quoted).exists()
            } else if of_the_code && let Some((part, _)) = quoted.split_once("::") {
                let module = root().join("src").join(quoted.replace("::", "/"));
                // Something of a part, or of a crate.
                !root().join("src").join(part).exists()
                    || module.is_dir()
                    || module.with_extension("rs").exists()
            } else {
                continue;
            };
            named += 1;
            if !exists {
                faults.push(format!("{}: there is no {quoted}", document.display()));
            }
        }
    }
    assert!(named > 50, "only {named} names are found");
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Whether a document has a heading of this anchor, as GitHub makes them.
fn has_heading(path: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|line| line.starts_with('#')).any(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).eq(anchor.chars())
    })
}

/// What one of the two maps lacks or says otherwise.
fn differences<T: std::fmt::Debug + PartialEq>(
    document: &str,
    source: &str,
    listed: &BTreeMap<String, T>,
    found: &BTreeMap<String, T>,
) -> Vec<String> {
    let names: BTreeSet<_> = listed.keys().chain(found.keys()).collect();
    let fault = |name: &&String| match (listed.get(*name), found.get(*name)) {
        (None, _) => Some(format!("{document} does not list {name}")),
        (_, None) => Some(format!("{document} lists {name}, which {source} does not have")),
        (Some(listed), Some(found)) if listed != found => {
            Some(format!("{name}:\n  {document}: {listed:?}\n  {source}: {found:?}"))
        }
        _ => None,
    };
    names.iter().filter_map(fault).collect()
}

/// The rows of four cells of all tables of a document, without their headings.
fn rows(document: &str) -> Vec<[String; 4]> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let row = |line: &&str| line.starts_with("| `mailchime") || line.starts_with("| `process_");
    let rows = text.lines().filter(row);
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        cells.collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("four cells: {line}"))
    };
    rows.map(cells).collect()
}

pub(crate) fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // The top folder holds more than documents of ours.
            if folder != root().join(".") {
                files(&path, extension, found);
            }
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
}

fn is_well_formed(target: &str) -> bool {
    let word = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    match target.split("::").collect::<Vec<_>>()[..] {
        ["mailchime", part, event] => PARTS.contains(&part) && word(event) && !event.is_empty(),
        _ => target == LOGIN_REFUSED,
    }
}

// --- reading the source ---

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// The level, the target and the text of each event that `source` logs.
fn events(source: &str) -> Vec<(String, Option<String>, String)> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    for (at, window) in tokens.windows(3).enumerate() {
        let [Token::Word(level), Token::Sign('!'), Token::Sign('(')] = window else { continue };
        if !LEVELS.contains(&level.as_str()) {
            continue;
        }
        let mut depth = 0_i32;
        let inside = tokens[at + 2..].iter().take_while(|token| {
            depth += match token {
                Token::Sign('(' | '[' | '{') => 1,
                Token::Sign(')' | ']' | '}') => -1,
                _ => 0,
            };
            depth > 0
        });
        let inside: Vec<_> = inside.skip(1).collect();
        let target = match inside[..] {
            [Token::Word(name), Token::Sign(':'), Token::Text(target), ..] if name == "target" => {
                Some(target.clone())
            }
            _ => None,
        };
        let text = inside.iter().rev().find_map(|token| match token {
            Token::Text(text) => Some(shown(text)),
            _ => None,
        });
        found.push((level.clone(), target, text.unwrap_or_default()));
    }
    found
}

fn tokens(source: &str) -> Vec<Token> {
    let (mut tokens, mut rest) = (Vec::new(), source);
    while let Some(first) = rest.chars().next() {
        let taken = if rest.starts_with('"') {
            let length = skipped(rest).unwrap();
            tokens.push(Token::Text(rest[1..length - 1].to_owned()));
            length
        } else if let Some(length) = skipped(rest) {
            length
        } else if is_word(rest) {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..length].to_owned()));
            length
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Sign(first));
            }
            first.len_utf8()
        };
        rest = &rest[taken..];
    }
    tokens
}

/// A literal as it is logged, with `{name}` for whatever is put in.
fn shown(literal: &str) -> String {
    let (mut text, mut rest) = (String::new(), literal);
    while let Some(first) = rest.chars().next() {
        let taken = if let Some(continued) = rest.strip_prefix("\\\n") {
            rest.len() - continued.trim_start().len()
        } else if let Some(escaped) = rest.strip_prefix('\\') {
            text.extend(escaped.chars().next());
            2
        } else if first == '{' {
            let length = rest.find('}').map_or(rest.len(), |end| end + 1);
            let name = rest[1..length].split([':', '}']).next().unwrap_or_default();
            text.push_str(&format!("{{{name}}}"));
            length
        } else {
            text.push(first);
            first.len_utf8()
        };
        rest = &rest[taken..];
    }
    text
}

#[test]
fn events_are_found() {
    let source = r#"
        // info!("no")
        let a = "warn!(\"no\")"; let b = 'x';
        tracing::warn!(target: "mailchime::net::a_b", %error, why = "x",
            "one {name:?} \
             two");
        debug!("three");
        info!(target: "mailchime::elsewhere::a", left = f(g(1), [2]), "four");
    "#;
    let event = |level: &str, target: Option<&str>, text: &str| {
        (level.to_owned(), target.map(str::to_owned), text.to_owned())
    };
    let expected = [
        event("warn", Some("mailchime::net::a_b"), "one {name} two"),
        event("debug", None, "three"),
        event("info", Some("mailchime::elsewhere::a"), "four"),
    ];
    assert_eq!(events(source), expected);
    for (target, fits) in [
        ("mailchime::net::a_b", true),
        (LOGIN_REFUSED, true),
        ("mailchime::elsewhere::a", false),
        ("mailchime::net::A", false),
        ("mailchime::net::", false),
        ("mailchime::net", false),
        ("net::a", false),
    ] {
        assert_eq!(is_well_formed(target), fits, "{target}");
    }
}
