//! The answer of an HTTP proxy: a tunnel begins behind a 2xx and nowhere else, and what comes in it is not touched.
#![no_main]

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::config::ProxyConfig;
use mailchime::net::tunnel::Tunnel;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A proxy that says this, whatever it is asked.
struct Proxy<'a> {
    says: &'a [u8],
    asked: Vec<u8>,
}

impl AsyncRead for Proxy<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.says).poll_read(cx, buf)
    }
}

impl AsyncWrite for Proxy<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.asked.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let proxy = ProxyConfig { host: "proxy".to_owned(), port: 3128, login_file: None };
    let tunnel = Tunnel::of(&proxy).expect("there is no file");
    let mut stream = Proxy { says: data, asked: Vec::new() };
    let opened = {
        let future = pin!(tunnel.open(&mut stream, "push.example", 443));
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(opened) => opened,
            Poll::Pending => panic!("a slice is always ready"),
        }
    };
    let end = data.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4);
    let status = data.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    match opened {
        Ok(()) => {
            let end = end.expect("a head that ends");
            assert!(data.starts_with(b"HTTP/1."));
            assert_eq!(status.first(), Some(&b'2'));
            assert_eq!(stream.says, &data[end..], "what is in the tunnel is not touched");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.chars().count() <= 100 * 10 + 50, "{} characters", text.len());
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
    assert!(stream.asked.starts_with(b"CONNECT push.example:443 HTTP/1.1\r\n"));
    Corpus::Keep
});
