//! Networks that end quiet connections.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::support::limited;
use crate::support::stage::{IDLE, QUIET, Stage, stop};

/// The network ends a connection on which nothing was said for so long.
const CUT: Duration = Duration::from_secs(4);

#[tokio::test]
async fn what_a_network_does_to_quiet_connections_is_learnt_and_is_no_failure() {
    limited(async {
        let mut stage = Stage::new().await;
        let watch = &mut stage.world.watch;
        (watch.retry_min, watch.retry_max) = (Duration::from_millis(200), Duration::from_hours(1));
        let watching = stage.world.watch();
        let (mut cut, mut gaps) = (None::<Instant>, Vec::new());
        let mut peer = loop {
            let mut peer = stage.accept().await;
            gaps.extend(cut.map(|cut| cut.elapsed()));
            assert!(gaps.len() <= 4, "it is cut again and again, and nobody watches for {gaps:?}");
            peer.play(IDLE).await;
            peer.play(QUIET).await;
            match timeout(CUT, peer.line()).await {
                Ok(line) => {
                    assert_eq!(line, "DONE");
                    break peer;
                }
                Err(_) => cut = Some(Instant::now()),
            }
        };
        println!("cut {} times, nobody watched for {gaps:?}", gaps.len());
        // One wait after a failure is at most 200 ms, a second in a row 400 ms; and so on.
        assert!(gaps.len() >= 2, "it is renewed before it is known that it has to be");
        peer.play("S: w3 OK done\nC: w4 IDLE\nS: + idling\nC: DONE\nS: w4 OK done\nC: w5 IDLE")
            .await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn without_idle_the_backend_is_asked_for_nothing_now_and_then() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.retry_min = Duration::from_millis(200);
        let watching = stage.world.watch();
        let mut cuts = 0;
        let peer = loop {
            let mut peer = stage.accept().await;
            peer.play(&IDLE.replace(" IDLE", "")).await;
            peer.play(
                "\
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w1 OK done
",
            )
            .await;
            match timeout(CUT, peer.line()).await {
                Ok(line) => {
                    assert_eq!(line, "w2 NOOP");
                    peer.play("S: w2 OK done\nC: w3 NOOP").await;
                    break peer;
                }
                Err(_) => cuts += 1,
            }
            assert!(cuts <= 4, "it is cut again and again");
        };
        stop(watching, peer).await;
    })
    .await;
}
