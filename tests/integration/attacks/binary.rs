//! What is in the program itself: none of the old TLS that a2 brings into the dependency tree, whose
//! certificate checks have known faults (`deny.toml`, SECURITY.md), and in a release nothing of the
//! machine that built it, so that anybody can build the same and compare.
//!
//! The program is the one that the tests run. `contrib/release/build.sh` asks the same of a release.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memchr::memmem;
use toml::Table;

/// A crate and its version.
type Package = (String, String);

/// What a2 alone brings: crates, and what their versions begin with.
const OLD: [(&str, &str); 6] = [
    ("ring", ""),
    ("rustls", "0.22."),
    ("rustls-webpki", "0.102."),
    ("rustls-pemfile", ""),
    ("hyper-rustls", ""),
    ("tokio-rustls", "0.25."),
];

/// The same with their whole versions, by `Cargo.lock`.
fn old() -> Vec<Package> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"));
    let lock: Table = text.unwrap().parse().unwrap();
    let locked = lock["package"].as_array().unwrap();
    let found = OLD.map(|(name, start)| {
        let found = locked.iter().find_map(|package| {
            let version = package["version"].as_str().unwrap();
            (package["name"].as_str() == Some(name) && version.starts_with(start))
                .then_some(version)
        });
        let gone = "is not in Cargo.lock any more: take it out of here, deny.toml and SECURITY.md";
        (name.to_owned(), found.unwrap_or_else(|| panic!("{name} {start} {gone}")).to_owned())
    });
    found.into()
}

/// What code of a crate leaves in a program: the paths of its sources, in messages of panics; and of
/// ring, names in C.
fn marks((name, version): &Package) -> Vec<String> {
    let mut marks = vec![format!("/{name}-{version}/")];
    if name == "ring" {
        marks.push("ring_core_0_".to_owned());
    }
    marks
}

fn holds(bytes: &[u8], mark: &str) -> bool {
    memmem::find(bytes, mark.as_bytes()).is_some()
}

/// The program without what only debuggers read: that names each source which the linker looked at, also
/// where nothing of it went into the program.
fn program() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("mailchime");
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-debug")
        .arg("-o")
        .args([stripped.as_path(), Path::new(env!("CARGO_BIN_EXE_mailchime"))]);
    assert!(strip.status().unwrap().success());
    fs::read(stripped).unwrap()
}

/// The libraries that the program was linked from, by the name of their crate.
fn libraries(name: &str) -> Vec<PathBuf> {
    let tests = std::env::current_exe().unwrap();
    let start = format!("lib{name}-");
    let is = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_string_lossy();
        file.starts_with(&start) && file.ends_with(".rlib")
    };
    let files = fs::read_dir(tests.parent().unwrap()).unwrap();
    files.map(|file| file.unwrap().path()).filter(is).collect()
}

#[test]
fn none_of_the_old_tls_that_a2_brings_is_in_the_program() {
    let program = program();
    for package in &old() {
        for mark in marks(package) {
            assert!(!holds(&program, &mark), "{mark} is in the program");
        }
    }
}

#[test]
fn the_search_for_old_tls_finds_what_is_there() {
    let program = program();
    for crates in ["/rustls-0.23.", "/rustls-webpki-0.103.", "/aws-lc-rs-1.", "/tokio-rustls-0.26."]
    {
        assert!(holds(&program, crates), "{crates} is not in the program");
    }
    // The libraries that it was linked from have what it must not have.
    for (name, library) in [("ring", "ring"), ("rustls", "rustls"), ("rustls-webpki", "webpki")] {
        let package = old().into_iter().find(|(found, _)| found == name).unwrap();
        let found = libraries(library).iter().any(|library| {
            let library = fs::read(library).unwrap();
            marks(&package).iter().any(|mark| holds(&library, mark))
        });
        assert!(found, "no library has a mark of {name}");
    }
}

/// Builds a small program in Rust and an object in C as a release is built; their bytes.
fn built(folder: &Path) -> [Vec<u8>; 2] {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    fs::create_dir_all(folder.join("src")).unwrap();
    // With what debuggers read, which names the folder.
    let package = "[package]\nname = \"small\"\nversion = \"1.0.0\"\nedition = \"2024\"\n";
    write("Cargo.toml", &format!("{package}[profile.release]\ndebug = 1\n"));
    // A message with the path of the source, for a panic.
    write(
        "src/main.rs",
        "fn main() {\n    println!(\"{:?}\", std::env::args().nth(9).unwrap());\n}\n",
    );
    write("object.c", "const char *here(void) { return __FILE__; }\n");
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/release/environment.sh");
    let script = "set -eu; root=$1; . \"$2\"; cd \"$root\"
        \"$3\" build --quiet --release --offline --target-dir \"$root/target\"
        cc $CFLAGS -c \"$root/object.c\" -o \"$root/object.o\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .args([folder, &environment, Path::new(env!("CARGO"))])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ["target/release/small", "object.o"].map(|name| fs::read(folder.join(name)).unwrap())
}

#[test]
fn a_release_is_the_same_bytes_whatever_folder_it_is_built_in() {
    let folder = tempfile::tempdir().unwrap();
    let one = built(&folder.path().join("one"));
    let other = built(&folder.path().join("another/with/a/longer/name"));
    let within = folder.path().display().to_string();
    for (one, other) in one.iter().zip(&other) {
        assert!(!holds(one, &within), "a folder of this machine is named");
        assert!(one == other, "{} and {} bytes, which differ", one.len(), other.len());
    }
    assert!(holds(&one[0], "src/main.rs") && holds(&one[1], "/mailchime/object.c"));
}
