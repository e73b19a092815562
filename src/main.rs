//! The `mailchime` program: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    mailchime::cli::main()
}
