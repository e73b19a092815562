//! One end of a connection that the test speaks for: as a client of mailchime, or as its backend.

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::soon;

pub(crate) struct Line<S>(pub(crate) BufStream<S>);

/// A mail client behind TLS.
pub(crate) type Client = Line<TlsStream<TcpStream>>;

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    pub(crate) fn of(stream: S) -> Self {
        Self(BufStream::new(stream))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_send(bytes).await, "the other side hung up");
    }

    /// The same, unless the other side has hung up or takes no more; returns whether it was sent.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).await.is_ok() && self.0.flush().await.is_ok()
    }

    /// The next line without its end; `None` at the end of the connection.
    pub(crate) async fn try_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = soon("a line", self.0.read_until(b'\n', &mut line)).await;
        matches!(read, Ok(1..)).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    pub(crate) async fn line(&mut self) -> String {
        self.try_line().await.expect("the other side hung up")
    }

    /// Reads to the line that begins so.
    pub(crate) async fn until(&mut self, start: &str) -> String {
        loop {
            let line = self.line().await;
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Sends a command and reads to its answer.
    pub(crate) async fn command(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n")).await;
        self.until(&format!("{} ", command.split(' ').next().unwrap())).await
    }

    /// The answer to a LOGIN with the tag `in`.
    pub(crate) async fn log_in(&mut self, name: &str, password: &str) -> String {
        let quote = if password.contains(' ') { "\"" } else { "" };
        self.command(&format!("in LOGIN {name} {quote}{password}{quote}")).await
    }

    /// Reads to the end, which must come. It may be a reset: a peer that is refused does not always
    /// stop sending first.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = soon("the end of the connection", self.0.read_to_end(&mut rest)).await;
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Reads to the end, however far it is; returns what came first.
    pub(crate) async fn start_of_rest(mut self) -> String {
        let (mut first, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
        let reading = async {
            while let Ok(length @ 1..) = self.0.read(&mut piece).await {
                first.extend_from_slice(
                    &piece[..length.min(1024_usize.saturating_sub(first.len()))],
                );
            }
        };
        soon("the end of the connection", reading).await;
        String::from_utf8_lossy(&first).into_owned()
    }

    /// Sends to a peer that may not read it all, and hangs up; returns what came meanwhile.
    pub(crate) async fn force(self, bytes: &[u8]) -> String {
        let (mut reads, mut writes) = tokio::io::split(self.0);
        let writing = async {
            let _ = writes.write_all(bytes).await;
            let _ = writes.flush().await;
            let _ = writes.shutdown().await;
        };
        let mut heard = Vec::new();
        let reading = reads.read_to_end(&mut heard);
        let _ = soon("the end of the connection", async { tokio::join!(reading, writing) }).await;
        String::from_utf8_lossy(&heard).into_owned()
    }
}

impl Client {
    /// Hangs up by a reset.
    pub(crate) fn reset(self) {
        self.0.get_ref().get_ref().0.set_zero_linger().unwrap();
    }
}
