//! A relay without any IMAP: what TLS and two sockets cost in any case.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::Listen;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    listen: Listen,
    /// The server behind it
    #[arg(long)]
    to: SocketAddr,
}

pub(crate) async fn run(options: Options) {
    let acceptor = options.listen.acceptor();
    let listener = TcpListener::bind(options.listen.tls).await.unwrap();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            client.set_nodelay(true)?;
            let mut client = acceptor.accept(client).await?;
            let mut backend = TcpStream::connect(options.to).await?;
            backend.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut backend).await
        });
    }
}
