//! DEFLATE: it inflates as zlib does, within bounds, and all that one side says reaches the other.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use flate2::{Decompress, FlushDecompress, Status};
use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::net::deflate::Deflated;
use mailchime::net::stream::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
}

/// Without ports and waits: a pair of local sockets does all that is asked of one of TCP.
fn pair() -> (UnixStream, Deflated<Stream>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    theirs.set_nonblocking(true).expect("a socket");
    let stream = std::net::TcpStream::from(OwnedFd::from(theirs));
    (ours, Deflated::new(Stream::Plain(TcpStream::from_std(stream).expect("a stream"))))
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&options, data)) = data.split_first() else { return Corpus::Reject };
    if data.len() > 16_000 {
        return Corpus::Reject;
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            inflate(data, 1 + usize::from(options)).await;
            both_ways(data, 1 + usize::from(options) * 8).await;
        })
    });
    Corpus::Keep
});

async fn inflate(data: &[u8], size: usize) {
    let (mut peer, mut deflated) = pair();
    peer.write_all(data).expect("it fits");
    peer.shutdown(Shutdown::Write).expect("a socket");
    let (mut out, mut buffer) = (Vec::new(), vec![0; size]);
    let most = 4096 * 1024;
    let ended = loop {
        match deflated.read(&mut buffer).await {
            Ok(0) => break true,
            Ok(length) => out.extend_from_slice(&buffer[..length]),
            Err(_) => break false,
        }
        // No more is kept than came, whatever it inflates to.
        let [plain, compressed, ..] = deflated.totals();
        assert_eq!(plain, out.len() as u64);
        assert!(compressed <= data.len() as u64);
        assert!(plain <= 1100 * (compressed + 300), "{plain} out of {compressed}");
        if out.len() > most {
            return;
        }
    };
    let mut expected = vec![0; out.len() + 1];
    let mut inflater = Decompress::new(false);
    let status = inflater.decompress(data, &mut expected, FlushDecompress::Sync);
    expected.truncate(inflater.total_out() as usize);
    assert!(expected.starts_with(&out), "the same bytes as from zlib");
    if ended {
        assert!(status.is_ok(), "an end where zlib finds a fault");
        assert_eq!(out.len(), expected.len(), "all of it");
        assert!(
            !matches!(status, Ok(Status::StreamEnd)) || inflater.total_in() <= data.len() as u64
        );
    }
}

async fn both_ways(data: &[u8], size: usize) {
    let (mut peer, mut deflated) = pair();
    let mut inflater = Decompress::new(false);
    let mut heard = Vec::with_capacity(data.len() + 1);
    let mut said = 0;
    for chunk in data.chunks(size) {
        deflated.write_all(chunk).await.expect("it takes it");
        deflated.flush().await.expect("it takes it");
        said += chunk.len();
        // All that was said before the flush can be read behind it.
        let mut wire = vec![0; 32 * 1024];
        let length = peer.read(&mut wire).expect("something was said");
        inflater
            .decompress_vec(&wire[..length], &mut heard, FlushDecompress::Sync)
            .expect("DEFLATE");
        assert_eq!(heard, data[..said]);
    }
}
