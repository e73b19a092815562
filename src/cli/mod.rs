//! The command line: one file per subcommand, and what they share.

mod ask;
mod certs;
mod check;
mod credentials;
mod demo;
mod devices;
mod event;
mod health;
mod holder;
mod import;
pub mod logging;
mod package_files;
mod push;
mod replay;
mod serve;
mod setup;
mod store;
mod table;
mod watchers;

use std::fmt::Display;
use std::future::poll_fn;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::task::Poll;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use rustix::process;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;

/// A TLS IMAP proxy that gives any mail server native push to iOS Mail, browsers, Android apps and web hooks.
#[derive(Debug, Parser)]
#[command(name = "mailchime", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<CliCommand>,

    #[command(flatten)]
    configured: Configured,
}

/// Of an option that selects something: nothing would select everything, or nobody.
fn not_empty() -> NonEmptyStringValueParser {
    NonEmptyStringValueParser::new()
}

/// What each command takes that has to do with a configured mailchime.
#[derive(Debug, clap::Args)]
struct Configured {
    /// The configuration; without this option MAILCHIME_CONFIG names it, else it is proxy.toml in this folder, else
    /// /etc/mailchime/proxy.toml. For root it is the latter where there is one
    #[arg(long, value_name = "FILE", global = true)]
    #[arg(default_value_os_t = default_config(), hide_default_value = true)]
    config: PathBuf,
}

/// Which configuration it is where the command line names none.
fn default_config() -> PathBuf {
    const HERE: &str = "proxy.toml";
    const INSTALLED: &str = "/etc/mailchime/proxy.toml";
    let named = std::env::var_os("MAILCHIME_CONFIG").filter(|name| !name.is_empty());
    // A folder in which root stands may be another user's.
    let is_free = || process::geteuid().is_root() || !Path::new(HERE).exists();
    match named {
        Some(named) => named.into(),
        None if is_free() && may_be_there(Path::new(INSTALLED)) => INSTALLED.into(),
        None => HERE.into(),
    }
}

/// A user who may not look into its folder reads that, rather than that there is no configuration.
fn may_be_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the proxy (also when no command is given)
    Serve(Configured),
    /// Write a first configuration from what this machine has, and say what to do next
    Setup(setup::SetupOptions),
    /// Test every part and say what is wrong with it
    Check(check::CheckOptions),
    /// Who is registered for push
    #[command(name = "subscriptions", visible_alias = "devices", subcommand)]
    Devices(devices::Devices),
    /// What the running mailchime watches
    Watchers(watchers::WatchersOptions),
    /// Have the running mailchime send a test push to each subscription of a user, and show what each push
    /// service says
    Push(push::PushOptions),
    /// Tell the running mailchime of an event in a mailbox, which is read from standard input
    Event(event::EventOptions),
    /// Whether the running mailchime is well, as an exit code
    Health(health::HealthOptions),
    /// See a push on this machine within seconds, without any setup
    Demo(demo::DemoOptions),
    /// Play written dialogues and show the first difference of each
    Replay(replay::ReplayOptions),
    /// Make certificates for development
    #[command(subcommand)]
    Certs(Certs),
    /// The database
    #[command(subcommand)]
    Store(StoreCommand),
    /// The stored credentials
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Write the manual pages and the completions of shells, for a package
    #[command(hide = true)]
    PackageFiles(package_files::PackageFilesOptions),
    /// Take over the phones of a program that pushed to them before
    #[command(subcommand)]
    Import(import::Import),
}

#[derive(Debug, Subcommand)]
enum Certs {
    /// A CA, a server certificate for localhost and one for the demo's push service
    Dev(certs::CertsOptions),
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Copy everything into an empty database of any kind; mailchime must be stopped meanwhile
    Copy(store::CopyOptions),
}

#[derive(Debug, Subcommand)]
enum CredentialsCommand {
    /// Encrypt what is stored with a new key; mailchime may run meanwhile
    Rotate(Configured),
}

/// How a command ended; the exit codes of DESIGN.md section 6.
#[derive(Debug)]
enum CommandFailure {
    /// Bad usage or configuration: 64.
    Usage(String),
    /// Anything else: 1.
    Failed(String),
}

impl CommandFailure {
    fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Runs the command that the program's arguments name.
pub fn main() -> ExitCode {
    let secluded = seclude();
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way, too. If nobody reads them there is nobody to tell.
            let _ = match error.use_stderr() && logging::is_to_journal() {
                true => io::stderr().write_all(logging::as_errors(&error.to_string()).as_bytes()),
                false => error.print(),
            };
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let result = match arguments.command.unwrap_or(CliCommand::Serve(arguments.configured)) {
        CliCommand::Serve(configured) => serve::run(&configured.config, secluded),
        CliCommand::Setup(options) => setup::run(&options),
        CliCommand::Check(options) => check::run(&options),
        CliCommand::Devices(devices) => devices::run(&devices),
        CliCommand::Watchers(options) => watchers::run(&options),
        CliCommand::Push(options) => push::run(&options),
        CliCommand::Event(options) => event::run(&options),
        CliCommand::Health(options) => health::run(&options),
        CliCommand::PackageFiles(options) => package_files::run(&options, command()),
        CliCommand::Demo(options) => demo::run(&options),
        CliCommand::Replay(options) => replay::run(&options),
        CliCommand::Certs(Certs::Dev(options)) => certs::run(&options),
        CliCommand::Store(StoreCommand::Copy(options)) => store::run(&options),
        CliCommand::Credentials(CredentialsCommand::Rotate(configured)) => {
            credentials::run(&configured.config)
        }
        CliCommand::Import(import) => import::run(&import),
    };
    let (message, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(CommandFailure::Usage(message)) => (message, 64),
        Err(CommandFailure::Failed(message)) => (message, 1),
    };
    say_error(&message);
    ExitCode::from(code)
}

/// The command line with all subcommands and options, as help, manual pages and completions have it.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// What the program's arguments say. A configuration that the command would not read is an error.
fn arguments() -> Result<Arguments, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    if let Some((name @ ("setup" | "demo" | "replay" | "certs" | "package-files"), given)) =
        matches.subcommand()
        && given.value_source("config") == Some(ValueSource::CommandLine)
    {
        let why = format!("{name} reads no configuration: leave out --config");
        return Err(command.error(ErrorKind::ArgumentConflict, why));
    }
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Keeps what this process knows of passwords and keys from everybody but root: no core is written, and
/// no other process of the same user may look into it.
fn seclude() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    process::set_dumpable_behavior(process::DumpableBehavior::NotDumpable)?;
    let none = process::Rlimit { current: Some(0), maximum: Some(0) };
    Ok(process::setrlimit(process::Resource::Core, none)?)
}

/// The runtime of a command.
fn runtime() -> Result<tokio::runtime::Runtime, CommandFailure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandFailure::Failed(format!("the runtime cannot start: {error}")))
}

/// The configuration of a command.
fn configuration(configured: &Configured) -> Result<Config, CommandFailure> {
    Config::load(&configured.config).map_err(|error| CommandFailure::Usage(error.to_string()))
}

// Standard output and error may be closed, by `| head` for example. What a command does goes on; a
// panic in the middle of it would help nobody.

/// A command's last word, for the user; in the journal it is an error.
fn say_error(message: &str) {
    let text = format!("mailchime: {message}\n");
    let text = if logging::is_to_journal() { logging::as_errors(&text) } else { text };
    let _ = io::stderr().write_all(text.as_bytes());
}

/// What a command was asked for.
fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// The signals that end a command, held back so that it ends in order.
struct Signals(Vec<Signal>);

impl Signals {
    /// Needs the runtime.
    fn new(kinds: &[SignalKind]) -> Result<Self, CommandFailure> {
        let signals = kinds.iter().map(|kind| signal(*kind)).collect::<io::Result<_>>();
        signals.map(Self).map_err(CommandFailure::failed)
    }

    /// Waits for the next of them. Cancel safe.
    async fn next(&mut self) {
        poll_fn(|cx| match self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}
