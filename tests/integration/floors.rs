//! The floors of the design: which part may name which, and that what is pure touches no socket, file or clock.
//!
//! The sources are read as tokens, so that a path in a comment or a string does not count and one
//! in a group (`use crate::{imap, net}`) or through `super` does. Names that a macro would make are
//! not seen; there are none.

mod bites;
mod services;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use self::tokens::tokens;
pub(crate) use self::tokens::{is_word, skipped};

/// From the roof to the ground. Each names those below itself and none beside it.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["app"],
    &["proxy", "watch", "push", "admin", "api", "intake", "record"],
    &["registrar"],
    &["nodes"],
    &["store", "net"],
    &["imap"],
    &["config"],
    &["model", "metrics", "secret_file"],
    &["files"],
];

/// The stand-ins: they may use anything, and only the command line and tests may use them.
const DEMO: &str = "demo";

/// Modules that touch no socket, file, task or clock.
const PURE: &[&str] = &["imap", "watch::ledger", "push::scheduler"];

/// What would give those a socket, a file, a task or a clock. A path that ends in `::now` is a
/// clock as well.
const NOT_IN_PURE: &[&str] = &[
    "tokio",
    "tokio_util",
    "tokio_rustls",
    "rustls",
    "hyper",
    "hyper_util",
    "socket2",
    "sqlx",
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
];

/// Floors on which a module and its own parts use each other in one direction only, too.
const WITHOUT_CIRCLES: &[&str] = &["imap", "proxy"];

/// Circles of files that are still there: their floor and their names, in order. None is added, and the
/// test fails on one that is no more.
const CIRCLES: &[(&str, &[&str])] = &[];

/// All files of `src`.
fn sources() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut Vec::new(), &mut files);
    assert!(files.iter().any(|file| file.module == ["model"]), "no sources in {}", root.display());
    files
}

#[test]
fn no_file_uses_one_that_uses_it() {
    let mut faults = Vec::new();
    let mut cut = CIRCLES.to_vec();
    for circle in circles(&sources()) {
        let mut names: Vec<_> =
            circle.iter().map(|module| module.last().map_or("", String::as_str)).collect();
        names.sort_unstable();
        let known = (circle[0][0].as_str(), &names[..]);
        if CIRCLES.contains(&known) {
            cut.retain(|circle| *circle != known);
        } else {
            let files: Vec<_> = circle.iter().map(|module| module.join("::")).collect();
            faults.push(format!("these use each other in a circle: {}", files.join(", ")));
        }
    }
    faults.extend(
        cut.iter()
            .map(|circle| format!("{circle:?} use each other no more: take it from the list")),
    );
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn no_type_name_stands_for_two_types() {
    let mut defined: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources() {
        for line in file.text.lines() {
            let mut words = without_visibility(line).split_whitespace();
            // A type inside an impl belongs to its trait, and the name that a macro is given is none.
            let inner = line.starts_with(' ') && line.trim_start().starts_with("type ");
            if let Some("struct" | "enum" | "trait" | "type") = words.next()
                && let Some(name) = words.next().filter(|name| !inner && !name.starts_with('$'))
            {
                let end = name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
                defined.entry(name[..end].to_owned()).or_default().insert(file.name.clone());
            }
        }
    }
    assert!(defined.len() > 300, "{}", defined.len());
    let twice: Vec<_> = defined.iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:#?}");
}

/// The line without its indent and a visibility, such as `pub(in crate::watch)`.
fn without_visibility(line: &str) -> &str {
    let line = line.trim_start();
    match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')').map_or(rest, |(_, rest)| rest),
        Some(rest) if rest.starts_with(' ') => rest,
        _ => line,
    }
}

#[test]
fn each_visibility_is_no_part_of_a_definition() {
    for visibility in ["", "pub ", "pub(super) ", "pub(in crate::watch) ", "    pub(crate) "] {
        let line = format!("{visibility}struct Name;");
        assert_eq!(without_visibility(&line).trim_start(), "struct Name;");
    }
    assert_eq!(without_visibility("publish(one)"), "publish(one)");
}

#[test]
fn no_floor_names_one_above_or_beside_it() {
    let files = sources();

    // A module of tests may lie in a file of its own, so where it is declared comes first.
    let tests: BTreeSet<_> = files.iter().flat_map(|file| file.uses().test_files).collect();
    let mut faults = Vec::new();
    for file in &files {
        let is_test = (1..=file.module.len()).any(|depth| tests.contains(&file.module[..depth]));
        faults.extend(
            file.faults(is_test).into_iter().map(|fault| format!("{}: {fault}", file.name)),
        );
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// So that a reader has a file in view.
const MOST_LINES: usize = 600;

#[test]
fn no_file_is_longer_than_a_reader_has_in_view() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        collect(&root.join(folder), &mut Vec::new(), &mut files);
    }
    assert!(files.len() > 300, "{}", files.len());
    let long = files.iter().map(|file| (&file.name, file.text.lines().count()));
    let long: Vec<_> = long.filter(|(_, lines)| *lines > MOST_LINES).collect();
    assert!(long.is_empty(), "cut these in two: {long:#?}");
}

/// A source file and the path of its module, empty for the root of the crate.
struct File {
    name: String,
    module: Vec<String>,
    text: String,
}

/// What a file names.
#[derive(Default)]
struct Uses {
    /// Each path, resolved from the root of the crate (`["crate", "net"]`) or of another
    /// (`["std", "fs"]`), and whether it stands in a module of tests.
    paths: Vec<(Vec<String>, bool)>,
    /// Modules that are declared for tests only and lie in files of their own.
    test_files: Vec<Vec<String>>,
    /// Those of the paths that are re-exported.
    reexports: Vec<Vec<String>>,
}

fn collect(folder: &Path, module: &mut Vec<String>, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            module.push(stem);
            collect(&path, module, files);
            module.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let root = module.is_empty() && (stem == "lib" || stem == "main");
            let own = (!root && stem != "mod").then_some(stem);
            files.push(File {
                name: path.display().to_string(),
                module: module.iter().cloned().chain(own).collect(),
                text: fs::read_to_string(&path).unwrap(),
            });
        }
    }
}

impl File {
    fn faults(&self, is_test: bool) -> Vec<String> {
        // The roots only declare the floors and start the program.
        let Some(from) = self.module.first() else { return Vec::new() };
        if from != DEMO && floor(from).is_none() {
            return vec![format!("`{from}` stands on no floor; add it to FLOORS")];
        }
        let mut faults = BTreeSet::new();
        for (path, in_tests) in self.uses().paths {
            let in_tests = in_tests || is_test;
            let shown = path.join("::");
            if let Some(to) = path.strip_prefix(&["crate".to_owned()]) {
                let to = to.first().map_or("", String::as_str);
                if to == "*" {
                    faults.insert(format!("`{shown}` hides what is used"));
                } else if !may_name(from, to, in_tests) {
                    faults.insert(format!("`{from}` must not name `{shown}`"));
                }
            }
            let is_pure = PURE.iter().find(|pure| self.module.join("::").starts_with(**pure));
            if let Some(pure) = is_pure.filter(|_| !in_tests && leaves_pure_code(&path)) {
                faults.insert(format!("`{pure}` must not use `{shown}`"));
            }
        }
        faults.into_iter().collect()
    }

    /// Walks the tokens with the module that they stand in.
    fn uses(&self) -> Uses {
        let tokens = tokens(&self.text);
        let mut uses = Uses::default();
        let mut module = self.module.clone();
        // For each open brace, whether it is that of a module, and whether tests had begun before.
        let mut braces = Vec::new();
        let mut in_tests = false;
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            match rest {
                [word, name, end, ..] if word == "mod" && (end == "{" || end == ";") => {
                    let for_tests = ends_with_cfg_test(&tokens[..at]);
                    module.push(name.clone());
                    if end == "{" {
                        braces.push((true, in_tests));
                        in_tests |= for_tests;
                    } else {
                        if for_tests {
                            uses.test_files.push(module.clone());
                        }
                        module.pop();
                    }
                    at += 3;
                }
                [token, ..] if token == "{" => {
                    braces.push((false, in_tests));
                    at += 1;
                }
                [token, ..] if token == "}" => {
                    if let Some((is_module, before)) = braces.pop() {
                        if is_module {
                            module.pop();
                        }
                        in_tests = before;
                    }
                    at += 1;
                }
                // Words before a path that starts with `::`, which is no part of theirs.
                [word, ..]
                    if matches!(
                        word.as_str(),
                        "use" | "return" | "mut" | "dyn" | "impl" | "in"
                    ) =>
                {
                    at += 1;
                }
                [token, ..] if is_word(token) => {
                    let mut found = Vec::new();
                    let before = &tokens[..at];
                    at += path_tree(rest, &[], &mut found);
                    let found = found.into_iter().map(|path| resolved(path, &module));
                    let found: Vec<_> = found.collect();
                    if is_reexport(before) {
                        uses.reexports.extend(found.iter().cloned());
                    }
                    uses.paths.extend(found.into_iter().map(|path| (path, in_tests)));
                }
                _ => at += 1,
            }
        }
        uses
    }
}

/// The path of a module.
type ModulePath = Vec<String>;

/// Groups of files of which each uses every other, maybe by way of others of the group. On most floors a part
/// may use what its module holds, which is no step of a circle then.
fn circles(files: &[File]) -> BTreeSet<Vec<ModulePath>> {
    let mut used: BTreeMap<ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
    for (from, to) in edges(files) {
        if !from.starts_with(&to) || WITHOUT_CIRCLES.contains(&from[0].as_str()) {
            used.entry(from).or_default().insert(to);
        }
    }
    // What each uses, and what that uses, and so on.
    let reached = |start: &ModulePath| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(module) = next.pop() {
            let steps = used.get(module).into_iter().flatten();
            next.extend(steps.filter(|step| reached.insert((*step).clone())));
        }
        reached
    };
    let reached: BTreeMap<_, _> = used.keys().map(|module| (module, reached(module))).collect();
    let back = |from: &ModulePath, to: &ModulePath| {
        reached.get(to).is_some_and(|reached| reached.contains(from))
    };
    let group = |(module, reached): (&&ModulePath, &BTreeSet<ModulePath>)| {
        let group = reached.iter().filter(|other| back(module, other));
        group.cloned().collect::<Vec<_>>()
    };
    reached.iter().map(group).filter(|group| !group.is_empty()).collect()
}

/// Which file uses which. A declaration (`mod x;`) is no use, and a re-export is one of where the item is,
/// by those that use it.
fn edges(files: &[File]) -> BTreeSet<(ModulePath, ModulePath)> {
    let uses: BTreeMap<_, _> = files.iter().map(|file| (&file.module, file.uses())).collect();
    let tests: BTreeSet<_> = uses.values().flat_map(|uses| &uses.test_files).cloned().collect();
    let mut edges = BTreeSet::new();
    for (&module, Uses { paths, reexports, .. }) in &uses {
        if (1..=module.len()).any(|depth| tests.contains(&module[..depth])) {
            continue;
        }
        for (path, _) in paths.iter().filter(|(_, in_tests)| !in_tests) {
            let own = path.last();
            let used_here = paths.iter().any(|(path, _)| path.first() == own);
            if reexports.contains(path) && !used_here {
                continue;
            }
            let inside = match path.split_first() {
                Some((root, inside)) if root == "crate" => inside.to_vec(),
                // A part of this module, without `self`; a word alone is a variable.
                _ if path.len() > 1 => [module.as_slice(), path].concat(),
                _ => continue,
            };
            // `pub(super)` and its like name only where they stand.
            if !module.starts_with(&inside)
                && let Some(target) = owner(&inside, &uses, 0)
                && target != module
                && !target.is_empty()
            {
                edges.insert((module.clone(), target.clone()));
            }
        }
    }
    edges
}

/// The file in which the item of this path lies, if it is one of ours.
fn owner<'a>(
    path: &[String],
    files: &BTreeMap<&'a Vec<String>, Uses>,
    depth: usize,
) -> Option<&'a Vec<String>> {
    let length =
        (1..=path.len()).rev().find(|length| files.contains_key(&path[..*length].to_vec()))?;
    let (module, uses) = files.get_key_value(&path[..length].to_vec())?;
    let reexport = path.get(length).and_then(|item| {
        uses.reexports.iter().find(|path| path.last() == Some(item) && path[0] == "crate")
    });
    match reexport {
        Some(path) if depth < 8 => owner(&path[1..], files, depth + 1),
        _ => Some(module),
    }
}

/// Whether a path behind these tokens stands in a `pub use`.
fn is_reexport(before: &[String]) -> bool {
    let Some((last, before)) = before.split_last() else { return false };
    let ends = |token: &str| before.last().is_some_and(|last| last == token);
    let visibility = ["(", "in", "crate", "super", "::", "self"];
    let restricted = || {
        let inside = before.iter().rev().skip(1);
        inside
            .into_iter()
            .find(|token| !visibility.contains(&token.as_str()))
            .is_some_and(|t| t == "pub")
    };
    last == "use" && (ends("pub") || (ends(")") && restricted()))
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn may_name(from: &str, to: &str, in_tests: bool) -> bool {
    if to == DEMO {
        let pure = matches!(from, "imap" | "config" | "model");
        return from == DEMO || from == "cli" || (in_tests && !pure);
    }
    match (floor(from), floor(to)) {
        _ if from == DEMO || from == to => true,
        (Some(from), Some(to)) => from < to,
        // No module but an item of the root, which only says where things are.
        (_, None) => true,
        (None, _) => false,
    }
}

fn leaves_pure_code(path: &[String]) -> bool {
    let shown = path.join("::");
    let within = |barred: &&str| {
        shown.strip_prefix(barred).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    NOT_IN_PURE.iter().any(within) || shown.ends_with("::now")
}

/// `path` with `super` and `self` replaced by what they mean in `module`.
fn resolved(path: Vec<String>, module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = path.as_slice();
    match rest.first().map(String::as_str) {
        Some("self" | "super") => {}
        Some("mailchime") => return [&["crate".to_owned()], &path[1..]].concat(),
        _ => return path,
    }
    loop {
        match rest.first().map(String::as_str) {
            Some("super") => drop(base.pop()),
            Some("self") => {}
            _ => break,
        }
        rest = &rest[1..];
    }
    [&["crate".to_owned()], base.as_slice(), rest].concat()
}

/// Reads the path, or the tree of paths, with which `tokens` begin; returns how many it took.
fn path_tree(tokens: &[String], prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = 0;
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") if at > 0 => {
                at += 1;
                while let Some(token) = tokens.get(at).filter(|token| *token != "}") {
                    let starts = is_word(token) || token == "*";
                    at += if starts { path_tree(&tokens[at..], &path, found) } else { 1 };
                }
                return at + 1;
            }
            Some("*") if path.len() > prefix.len() || !prefix.is_empty() => {
                path.push("*".to_owned());
                at += 1;
                break;
            }
            Some(word) if is_word(word) => {
                path.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
        match tokens.get(at).map(String::as_str) {
            Some("::") => at += 1,
            _ => break,
        }
    }
    found.push(path);
    at
}

fn ends_with_cfg_test(tokens: &[String]) -> bool {
    let visibility = ["pub", "(", "crate", "super", ")"];
    let end = tokens.iter().rposition(|token| !visibility.contains(&token.as_str()));
    // `)` of the attribute is also one of a visibility; what follows it decides.
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    end.is_some_and(|end| {
        tokens[..=end].iter().rev().zip(attribute.iter().rev()).all(|(a, b)| a == b)
    }) && tokens.len() >= attribute.len()
}
