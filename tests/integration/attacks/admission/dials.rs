//! What a client without a login may cost the backend in connections and tries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Counting, HOME, Network, world_before};
use crate::support::world::{LOGIN, PASSWORD};
use crate::support::{limited, listener, soon};

fn with_a_token() -> String {
    let response = format!("user={LOGIN}\x01auth=Bearer token\x01\x01");
    format!("in AUTHENTICATE XOAUTH2 {}", STANDARD.encode(response))
}

#[tokio::test]
async fn a_mechanism_that_the_backend_lacks_costs_it_nothing() {
    limited(async {
        let backend = Counting::refusing().await;
        let world = world_before(backend.address, "failure_delay = \"500ms\"").await;
        let mut server = world.serve().await;
        let network = Network::of(&world, &server);
        // The list of what it can do is known, and is asked for again when five seconds have gone by.
        let known = Instant::now();
        network.gets_in(HOME).await;
        let before = backend.connections();
        let mut client = network.client([127, 7, 0, 1]).await;
        let (started, mut tries) = (Instant::now(), 0_u32);
        while started.elapsed() < Duration::from_secs(3) {
            let answer = client.command(&with_a_token()).await;
            assert!(answer.starts_with("in NO"), "{answer}");
            tries += 1;
        }
        let dials = backend.connections() - before;
        assert!(tries <= 7, "{tries} tries in {:?}", started.elapsed());
        // Once at its start, which may come as late as this.
        let most = 1 + known.elapsed().as_secs() / 5;
        assert!(dials as u64 <= most, "{dials} connections for {tries} tries");
        assert_eq!(
            server.warned("the backend did not answer a login; see the backend's log").await,
            0
        );
    })
    .await;
}

/// What the backend was seen to offer is not what it offers now.
#[tokio::test]
async fn a_list_that_has_grown_old_keeps_nobody_out() {
    limited(async {
        let before = Counting::refusing().await;
        let now = Counting::start("AUTH=XOAUTH2 SASL-IR", "OK in").await;
        // The one in front leads to one backend, and then to the other.
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let upgraded = Arc::new(AtomicUsize::new(0));
        let (first, second, which) = (before.address, now.address, Arc::clone(&upgraded));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let to = if which.load(Ordering::Relaxed) == 0 { first } else { second };
                tokio::spawn(async move {
                    let mut backend = TcpStream::connect(to).await.unwrap();
                    tokio::io::copy_bidirectional(&mut stream, &mut backend).await
                });
            }
        });
        let limits = "failure_delay = \"1ms\"\ncommands_before_login = 1000000";
        let world = world_before(address, limits).await;
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        network.gets_in(HOME).await;
        upgraded.store(1, Ordering::Relaxed);
        let mut client = network.client(HOME).await;
        let accepted =
            async { while !client.command(&with_a_token()).await.starts_with("in OK") {} };
        soon("a look at what it offers now", accepted).await;
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_is_away_makes_one_log_line_and_is_back_for_all() {
    limited(async {
        // Nobody listens there, and nobody else gets the port.
        let place = TcpSocket::new_v4().unwrap();
        place.set_reuseaddr(true).unwrap();
        place.bind((HOME, 0).into()).unwrap();
        let address = place.local_addr().unwrap();
        let limits = "failure_delay = \"20ms\"\nlogin_failures_per_minute = 3";
        let world = world_before(address, limits).await;
        let mut server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut client = network.client(HOME).await;
        let started = Instant::now();
        for _ in 0..10 {
            let answer = client.log_in(LOGIN, PASSWORD).await;
            assert!(answer.starts_with("in NO [UNAVAILABLE]"), "{answer}");
        }
        assert!(started.elapsed() >= Duration::from_millis(200), "each answer is delayed");
        assert_eq!(
            server.warned("could not reach the backend; the client gets NO [UNAVAILABLE]").await,
            1
        );
        assert_eq!(server.warned("login refused").await, 0);

        let listener = place.listen(64).unwrap();
        let backend = mailchime::demo::backend::DemoBackend::start(listener, None).unwrap();
        backend.add_account(LOGIN, PASSWORD.as_bytes());
        assert!(client.log_in(LOGIN, PASSWORD).await.starts_with("in OK"));
    })
    .await;
}

#[tokio::test]
async fn one_address_causes_so_many_connections_in_a_minute() {
    limited(async {
        let refusal = "NO [UNAVAILABLE] Temporary authentication failure";
        let backend = Counting::start("", refusal).await;
        let limits = "failure_delay = \"1ms\"\ndials_per_minute = 20";
        let world = world_before(backend.address, limits).await;
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        let started = Instant::now();
        network.gets_in(HOME).await;
        let mut tries = JoinSet::new();
        for at in 0..60 {
            let network = network.clone();
            tries.spawn(async move {
                let mut client = network.client(HOME).await;
                client.log_in(&format!("user{at}"), "guess").await
            });
        }
        let turned_away = async {
            let mut times = 0;
            while times < 30 {
                let answer = tries.join_next().await.unwrap().unwrap();
                times += u32::from(
                    answer == "in NO [LIMIT] Too many logins from your address, try again later",
                );
            }
        };
        soon("the others to be turned away", turned_away).await;
        // Twenty, and one for each three seconds.
        let most = 20 + started.elapsed().as_secs() / 3 + 1;
        assert!(backend.tries() as u64 <= most, "{} tries", backend.tries());
        // Neither others nor who is known are held up.
        network.gets_in([127, 8, 0, 1]).await;
        network.gets_in(HOME).await;
    })
    .await;
}
