# What the workflow runs, a recipe each. `just` lists them; `just NAME` runs one.

# lists the recipes
default:
    @just --list

# formatting
format:
    cargo fmt --check
    cargo fmt --check --manifest-path fuzz/Cargo.toml

# lints, of every target
lint:
    cargo clippy --all-targets --locked -- -D warnings
    cargo clippy --test soak --locked -- -D warnings
    cargo clippy --manifest-path fuzz/Cargo.toml --target-dir target --locked -- -D warnings

# the tests that need no mail server, database or browser
test-unit:
    cargo test --locked --lib

# all checks of tests/run.sh (format, lint, doc and every test) with what is on this machine
test:
    tests/run.sh

# the same, and what is missing is installed first
test-install:
    tests/run.sh --install

# the documentation of the code
doc:
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked --document-private-items

# the documents as a book, in target/book; each link in it leads somewhere
book:
    mdbook build
    contrib/book/links.py check target/book

# licences, advisories and sources of the dependencies
deny:
    cargo deny check

# the oldest Rust that Cargo.toml names
minimum-rust:
    cargo +$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) check --locked --all-targets

# a push on loopback
demo:
    cargo run --release --locked -- demo --once
