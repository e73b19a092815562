//! The `mailchime` program.

fn main() {}
