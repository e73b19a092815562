//! Ports of loopback that are one test's alone.
//!
//! They are below the range that the kernel hands out by itself, so that neither a port 0 nor a
//! client's socket takes one while nobody listens there, be it before a server's start or while a server
//! is stopped to be started again. None is handed out twice by one process, so that no client of a test
//! whose server has gone meets the server of another test.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Mutex;

/// A listener at such a port.
pub(crate) fn own_listener() -> TcpListener {
    static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    loop {
        let port = 10_000 + rand::random::<u16>() % 20_000;
        if TAKEN.lock().unwrap().get_or_insert_default().insert(port)
            && let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        {
            return listener;
        }
    }
}

/// An address where nobody listens.
pub(crate) fn own_address() -> SocketAddr {
    own_listener().local_addr().unwrap()
}

/// How many connections to this address of IPv4 are open now, as the system says.
pub(crate) fn connections_to(address: SocketAddr) -> usize {
    const ESTABLISHED: &str = "01";
    let SocketAddr::V4(address) = address else { panic!("{address} is not of IPv4") };
    let number = u32::from_ne_bytes(address.ip().octets());
    let remote = format!("{number:08X}:{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[2] == remote && row[3] == ESTABLISHED).count()
}

#[tokio::test]
async fn open_connections_are_counted() {
    let listener = super::listener().await;
    let address = listener.local_addr().unwrap();
    assert_eq!(connections_to(address), 0);
    let both = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    assert_eq!(connections_to(address), 1);
    drop(both);
    // A program that another test starts at this moment holds it until it runs.
    super::until(async || connections_to(address) == 0).await;
}

#[test]
fn no_test_listens_at_a_port_that_another_has_had() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration");
    let mut sources = Vec::new();
    crate::lists::files(&tests, "rs", &mut sources);
    assert!(sources.len() > 100, "{}", sources.len());
    for source in sources {
        let text = fs::read_to_string(&source).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            let of_the_kernel = ["(\"127.0.0.1:0\"", "((\"127.0.0.1\", 0)", "(loopback())"];
            let of_the_kernel = of_the_kernel.map(|place| format!("TcpListener::bind{place}"));
            assert!(
                !of_the_kernel.iter().any(|bind| line.contains(bind)),
                "{}:{number}: take support::listener() or ports::own_listener()",
                source.display()
            );
        }
    }
}
