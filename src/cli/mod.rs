//! The command line: one file per subcommand, and what they share.

mod certs;
mod demo;
pub mod logging;
mod serve;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A TLS IMAP proxy that gives any mail server native push to iOS Mail.
#[derive(Debug, Parser)]
#[command(name = "mailchime", version, about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration; proxy.toml in the source tree is its manual
    #[arg(long, global = true, value_name = "FILE", default_value = "proxy.toml")]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (also when no command is given)
    Serve,
    /// See a push on this machine within seconds, without any setup
    Demo(demo::Options),
    /// Make certificates for development
    #[command(subcommand)]
    Certs(Certs),
}

#[derive(Debug, Subcommand)]
enum Certs {
    /// A CA, a server certificate for localhost and one for the APNs stand-in
    Dev(certs::Options),
}

/// How a command ended; the exit codes of DESIGN.md section 6.
#[derive(Debug)]
enum Failure {
    /// Bad usage or configuration: 64.
    Usage(String),
    /// Anything else: 1.
    Failed(String),
}

impl Failure {
    fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Runs the command that the program's arguments name.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way, too. If nobody reads them there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let result = match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(&arguments.config),
        Command::Demo(options) => demo::run(&options),
        Command::Certs(Certs::Dev(options)) => certs::run(&options),
    };
    let (message, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (message, 64),
        Err(Failure::Failed(message)) => (message, 1),
    };
    say_error(&message);
    ExitCode::from(code)
}

/// The runtime of a command.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("the runtime cannot start: {error}")))
}

#[expect(clippy::print_stderr, reason = "a command's last word is for whoever typed it")]
fn say_error(message: &str) {
    eprintln!("mailchime: {message}");
}

#[expect(clippy::print_stdout, reason = "what a command was asked for goes to standard output")]
fn say(text: impl Display) {
    println!("{text}");
}
