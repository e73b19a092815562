//! The load, the IMAP server behind it, and the report, for `benches/compare.sh`.
//!
//! Nothing of mailchime is used here: what measures it must not share its code. Each subcommand is
//! one process, so that what a proxy costs can be told from what its two ends cost.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the figures are its output")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement that cannot go on says so and ends"
)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

mod client;
mod measure;
mod plot;
mod processes;
mod relay;
mod report;
mod server;

#[derive(Debug, Parser)]
enum Command {
    /// A synthetic IMAP server that is quicker than any proxy
    Serve(server::Options),
    /// TLS in front, bytes copied, no IMAP: the least that a proxy can cost
    Relay(relay::Options),
    /// Measures one figure of one server
    Measure(measure::Options),
    /// Starts a program over and over: how long until it listens, and how large it is then
    Start(measure::Start),
    /// Tables and verdicts from what was measured
    Report(report::Options),
    /// Prints ports that nothing listens at
    Ports { count: usize },
}

/// Where to listen with TLS, and as whom.
#[derive(Debug, clap::Args)]
struct Listen {
    /// Where to listen with TLS
    #[arg(long)]
    tls: SocketAddr,
    #[arg(long)]
    certificate: PathBuf,
    #[arg(long)]
    private_key: PathBuf,
}

impl Listen {
    fn acceptor(&self) -> TlsAcceptor {
        let chain: Vec<_> = CertificateDer::pem_file_iter(&self.certificate)
            .expect("the certificate is readable")
            .collect::<Result<_, _>>()
            .expect("the certificate is PEM");
        let key = PrivateKeyDer::from_pem_file(&self.private_key).expect("the key is readable");
        let config = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("certificate and key belong together");
        TlsAcceptor::from(Arc::new(config))
    }
}

fn main() {
    match Command::parse() {
        Command::Serve(options) => runtime(2).block_on(server::run(options)),
        Command::Relay(options) => runtime(2).block_on(relay::run(options)),
        // A second thread would only have to be woken for a single session.
        Command::Measure(options) => {
            runtime(options.sessions.min(2)).block_on(measure::run(options));
        }
        Command::Start(options) => measure::start(&options),
        Command::Report(options) => report::run(&options),
        Command::Ports { count } => print_ports(count),
    }
}

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(1)).enable_all().build().unwrap()
}

/// Below the range from which the system takes ports for connections: one of tens of thousands
/// must not sit where a server is to be started again.
fn print_ports(count: usize) {
    let mut found = Vec::new();
    while found.len() < count {
        let port = rand::random_range(20_000..32_000_u16);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            println!("{port}");
            found.push(listener);
        }
    }
}
