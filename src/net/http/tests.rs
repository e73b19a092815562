//! Times of an HTTP server: for an answer to be taken, and for all to end.

use http_body_util::{BodyExt, Full};

use super::*;

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_in_time_ends_its_connection() {
    let connections = OpenConnections::new(1);
    let (admitted, _) = connections.admit("192.0.2.1".parse().unwrap());
    let of = |length: usize, endless: bool| {
        let body = Full::new(Bytes::from(vec![b'x'; length]));
        CountedBody::new(body, &admitted, AdmittedConnection::request(&admitted), endless)
    };
    let body = |length: usize| of(length, false);
    let whole = body(2 * PIECE + 1);
    assert_eq!(whole.size_hint().exact(), Some(2 * PIECE as u64 + 1));
    assert_eq!(whole.collect().await.unwrap().to_bytes().len(), 2 * PIECE + 1);
    sleep(BODY_TIME * 2).await;
    assert!(!admitted.leave.is_cancelled(), "it was taken");
    let _endless = of(PIECE, true);
    sleep(BODY_TIME * 2).await;
    assert!(!admitted.leave.is_cancelled(), "it may last");

    let mut held = body(PIECE + 1);
    let first = held.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((first.len(), held.size_hint().exact()), (PIECE, Some(1)));
    assert!(!held.is_end_stream());
    sleep(BODY_TIME + FAREWELL).await;
    assert!(admitted.leave.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn the_grace_of_a_stop_counts_once_for_a_head_and_an_endless_body_behind_it() {
    let (admitted, _) = OpenConnections::new(1).admit("192.0.2.1".parse().unwrap());
    let minute = Duration::from_mins(1);
    let limits = HttpLimits {
        connections: 1,
        request_timeout: minute,
        write_timeout: minute,
        shutdown_grace: 2 * minute,
    };
    let (counters, stop, stopped_at) = (Arc::default(), CancellationToken::new(), Arc::default());
    let connection = ServedConnection { limits, counters, admitted, stop, stopped_at };
    let begin = Instant::now();
    connection.stop.cancel();
    let head = connection.until_end(pin!(sleep(minute)), |_| {}).await;
    assert_eq!((head, begin.elapsed()), (Some(()), minute));
    connection.grace_is_over().await;
    assert_eq!(begin.elapsed(), 2 * minute);
}
