//! `mailchime setup`: a first configuration, from what this machine has. It writes no file that is there,
//! changes no server and makes no user: it prints what to do.

mod advice;
mod certificates;
mod probe;
mod written;

use std::io::{self, BufRead, IsTerminal, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::path::{Path, PathBuf};

use super::{CommandFailure, holder, not_empty, runtime, say};
use crate::config::PublicKeyPin;

/// The port of the pilot, beside the server's own.
const PILOT: u16 = 1993;

/// The port of IMAP (RFC 9051 section 2.1).
const IMAP: u16 = 143;

/// The port of mail over TLS (RFC 8314 section 7.3).
const IMAPS: u16 = 993;

#[derive(Debug, clap::Args)]
pub(super) struct SetupOptions {
    /// The IMAP server; otherwise it is looked for at 127.0.0.1:143 and 127.0.0.1:993
    #[arg(long, value_name = "HOST:PORT", value_parser = not_empty())]
    backend: Option<String>,

    /// The authority of the server's certificate, where it is a private one
    #[arg(long, value_name = "FILE")]
    backend_ca: Option<PathBuf>,

    /// The server's public key, in place of authorities: the SHA-256 of it in base64, which becomes tls_pin_sha256
    #[arg(long, value_name = "SHA256", value_parser = pin, conflicts_with = "backend_ca")]
    backend_pin: Option<PublicKeyPin>,

    /// What the server is, where its greeting does not say it
    #[arg(long, value_name = "KIND")]
    server: Option<MailServerKind>,

    /// The certificate that phones see; otherwise those of Dovecot and of certbot are looked at
    #[arg(long, value_name = "FILE", requires = "private_key")]
    certificate: Option<PathBuf>,

    /// Its private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,

    /// With what mailchime watches mailboxes
    #[arg(long, value_name = "MODE")]
    credentials: Option<WatchCredentials>,

    /// The port for phones: 1993 is a pilot beside the untouched server
    #[arg(long)]
    port: Option<u16>,

    /// Print everything and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Look and write below this folder
    #[arg(long, value_name = "FOLDER", default_value = "/", hide = true)]
    root: PathBuf,

    /// Look here for IMAP
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:143", hide = true)]
    imap_at: String,

    /// Look here for IMAP over TLS
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:993", hide = true)]
    imaps_at: String,
}

/// A pin as `[backend] tls_pin_sha256` takes it.
fn pin(text: &str) -> Result<PublicKeyPin, &'static str> {
    text.parse().map_err(|_| "write the SHA-256 of a public key in base64, of 44 characters")
}

/// What a mail server is, as far as its administration differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum MailServerKind {
    /// Dovecot up to 2.3
    #[value(name = "dovecot-2.3")]
    Dovecot23,
    /// Dovecot from 2.4 on
    #[value(name = "dovecot-2.4")]
    Dovecot24,
    /// Dovecot, and nothing here says of which version
    #[value(skip)]
    DovecotUnknown,
    Cyrus,
    Courier,
    Other,
}

impl MailServerKind {
    /// Whether a user of it can act as others.
    fn can_have_master(self) -> bool {
        !matches!(self, Self::Courier | Self::Other)
    }
}

/// With what accounts are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum WatchCredentials {
    /// The password of each user who has a phone, encrypted on this machine
    Stored,
    /// A master user of the server; no user's password is kept
    Master,
}

/// What was found and chosen.
#[derive(Debug)]
struct SetupPlan {
    root: PathBuf,
    server: probe::FoundServer,
    /// Who holds port 993 and is not the server.
    other: Option<holder::PortHolder>,
    certificate: certificates::FoundCertificate,
    credentials: WatchCredentials,
    /// Every address of this machine, as `[[listener]] address` has it before the port.
    everywhere: &'static str,
    port: u16,
}

pub(super) fn run(options: &SetupOptions) -> Result<(), CommandFailure> {
    let root = &options.root;
    let certificate = certificate(options)?;
    say(format_args!("certificate: {certificate}"));
    if certificate.refused.is_some() {
        say(
            "warning: get a certificate of a public authority (certbot), and name it by --certificate and \
             --private-key, before the first phone is to connect",
        );
    }
    let runtime = runtime()?;
    let probe::ServerSearch { server, other } =
        runtime.block_on(probe::find(options, &certificate.name))?;
    // The look-up of a name cannot be ended, and is not waited for.
    runtime.shutdown_background();
    say(format_args!("IMAP server: {server}"));
    let credentials = credentials(options, server.kind)?;
    let port = options.port.unwrap_or(PILOT);
    let everywhere = everywhere(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok());
    let plan =
        SetupPlan { root: root.clone(), server, other, certificate, credentials, everywhere, port };
    let files = written::files(&plan)?;
    if options.dry_run {
        let there = written::already_there(&files, root);
        // What the files would be is shown all the same.
        let would = match &there {
            Some(why) => {
                say(format_args!("\n{why}"));
                "once it is away, would write"
            }
            None => "would write",
        };
        for file in &files {
            say(format_args!("\n{would} {} (mode {:03o})", file.path.display(), file.mode));
            if let Some(text) = &file.shown {
                say(text);
            }
        }
    } else {
        written::write(&files, root)?;
        say("");
        files.iter().for_each(|file| say(format_args!("wrote {}", file.path.display())));
    }
    say(advice::text(&plan));
    Ok(())
}

fn certificate(options: &SetupOptions) -> Result<certificates::FoundCertificate, CommandFailure> {
    if let (Some(certificate), Some(private_key)) = (&options.certificate, &options.private_key) {
        return certificates::FoundCertificate::load(certificate, private_key, "as you say")
            .map_err(CommandFailure::Usage);
    }
    let (mut found, unfit) = certificates::find(&options.root);
    for why in unfit {
        say(format_args!("passed over a certificate: {why}"));
    }
    if found.is_empty() {
        return Err(CommandFailure::Usage(
            "found no certificate of Dovecot or certbot that can be used; name one by --certificate and \
             --private-key"
                .to_owned(),
        ));
    }
    let labels: Vec<_> = found.iter().map(ToString::to_string).collect();
    // The server's own, unless phones refuse it and there is another.
    let fit: Vec<_> = (0..found.len()).filter(|at| found[*at].refused.is_none()).collect();
    let default = match fit[..] {
        [] => found[0].is_of_server.then_some(0),
        [only] => Some(only),
        [first, ..] => found[first].is_of_server.then_some(first),
    };
    let flags = "--certificate and --private-key";
    let chosen = choose("Which certificate do phones see?", &labels, default, flags)?;
    Ok(found.swap_remove(chosen))
}

/// With a word on each.
fn credentials(
    options: &SetupOptions,
    server: MailServerKind,
) -> Result<WatchCredentials, CommandFailure> {
    let can_be_master = server != MailServerKind::Courier;
    if options.credentials == Some(WatchCredentials::Master) && !can_be_master {
        return Err(CommandFailure::Usage(
            "--credentials master: Courier has no master user; use stored".to_owned(),
        ));
    }
    let stored = "stored: the password of each user who has a phone, encrypted on this machine. It needs no \
                  change to the server; after a change of password the user logs in once. Who gets hold of \
                  mailchime's files can read the mail of these users";
    let master = match server.can_have_master() {
        true => {
            "master: a master user of the server watches for all (recommended). No user's password is kept, and \
             nothing stops when one is changed; the server needs the user first. Who gets hold of mailchime's files \
             can read the mail of all users, unless the server takes the user from mailchime's address alone"
        }
        false => {
            "master: a master user of the server watches for all. No user's password is kept, and \
             nothing stops when one is changed; the server needs the user first"
        }
    };
    let labels = match can_be_master {
        true => vec![stored.to_owned(), master.to_owned()],
        false => vec![stored.to_owned()],
    };
    let question = "With what does mailchime watch mailboxes?";
    let chosen = match options.credentials {
        Some(chosen) => chosen,
        None => match choose(question, &labels, Some(0), "--credentials")? {
            0 => WatchCredentials::Stored,
            _ => WatchCredentials::Master,
        },
    };
    let (chosen_word, other, other_word) = match chosen {
        WatchCredentials::Stored => (stored, "master", master),
        WatchCredentials::Master => (master, "stored", stored),
    };
    say(format_args!("mailboxes are watched with {chosen_word}"));
    match can_be_master {
        true => {
            say(format_args!("  with --credentials {other} they are watched with {other_word}"))
        }
        false => say("  Courier has no master user"),
    }
    Ok(chosen)
}

/// Which of these: asked where a person is there to answer, else the default one. Where there is none, `flag`
/// is to be given.
fn choose(
    question: &str,
    labels: &[String],
    default: Option<usize>,
    flag: &str,
) -> Result<usize, CommandFailure> {
    if labels.len() == 1 {
        return Ok(0);
    }
    let list: String =
        (1..).zip(labels).map(|(number, label)| format!("  {number}  {label}\n")).collect();
    if !io::stdin().is_terminal() {
        return default.ok_or_else(|| {
            CommandFailure::Usage(format!(
                "{question}\n{list}There are several; say which by {flag}"
            ))
        });
    }
    let shown = default.map(|at| format!(" [{}]", at + 1)).unwrap_or_default();
    loop {
        let _ = write!(io::stdout(), "\n{question}\n{list}Number{shown}: ");
        let _ = io::stdout().flush();
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line).map_err(CommandFailure::failed)?;
        match (line.trim(), default) {
            ("", Some(default)) => return Ok(default),
            _ if read == 0 => return Err(CommandFailure::Failed("nothing was written".to_owned())),
            (line, _) => {
                if let Some(at @ 1..) = line.parse().ok()
                    && at <= labels.len()
                {
                    return Ok(at - 1);
                }
            }
        }
    }
}

/// Every address of this machine. A kernel without IPv6 does not have the wildcard that takes IPv4 as well.
fn everywhere(has_ipv6: bool) -> &'static str {
    if has_ipv6 { "[::]" } else { "0.0.0.0" }
}

/// A page of the documents: where the package has it.
fn page(root: &Path, name: &str) -> String {
    let page = below(root, "usr/share/doc/mailchime").join(name);
    match page.exists() {
        true => page.display().to_string(),
        false => format!("{name} of the sources"),
    }
}

/// An absolute path as it is below `root`.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
