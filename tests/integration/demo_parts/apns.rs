//! The push service, through hyper's own client.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mailchime::demo::apns::{Answer, Apns};
use mailchime::demo::pki::{Identity, Pki};
use mailchime::imap::registration::xapple::DeviceToken;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{TOKEN, TOPIC};
use crate::support::{limited, listener};

#[tokio::test]
async fn a_push_is_checked_recorded_and_accepted() {
    limited(async {
        let (apns, pki) = apns().await;
        let mut client = http2(&apns, &pki, Some(&pki.client)).await.unwrap();
        let (status, id, answer) = push(&mut client, TOKEN, TOPIC).await;
        assert_eq!((status, answer), (StatusCode::OK, Value::Null));
        assert_eq!(id.len(), 36);

        let got = apns.next().await;
        assert_eq!(got.token, DeviceToken::new(TOKEN));
        assert_eq!(got.json(), json!({"aps": {"account-id": "A"}}));
        assert_eq!(got.header("apns-topic"), Some(TOPIC));
        assert_eq!((got.connection, got.status), (1, Some(200)));
        assert!(!got.headers.contains_key("authorization"));
        assert!(!format!("{got:?}").contains(TOKEN));

        let (status, _, answer) = push(&mut client, TOKEN, "com.apple.mail.other").await;
        assert_eq!((status.as_u16(), answer), (400, json!({"reason": "TopicDisallowed"})));
        let (status, _, answer) = push(&mut client, &"0".repeat(64), TOPIC).await;
        assert_eq!((status.as_u16(), answer), (400, json!({"reason": "BadDeviceToken"})));
        let large = request(TOKEN, TOPIC, vec![b' '; 4097]);
        let (status, _, answer) = send(&mut client, large).await.unwrap();
        assert_eq!((status.as_u16(), answer), (413, json!({"reason": "PayloadTooLarge"})));
        apns.wait_for(4).await;
        let statuses: Vec<_> = apns.pushes().iter().map(|push| push.status.unwrap()).collect();
        assert_eq!(statuses, [200, 400, 400, 413]);
    })
    .await;
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate_of_the_ca_or_a_token_that_is_good() {
    limited(async {
        let (apns, pki) = apns().await;
        let stranger = Pki::generate(Some(TOPIC)).unwrap();
        for identity in [Some(&stranger.client), Some(&pki.server)] {
            let refused = match http2(&apns, &pki, identity).await {
                Err(_) => true,
                // In TLS 1.3 the client learns it only when it reads.
                Ok(mut client) => {
                    send(&mut client, request(TOKEN, TOPIC, b"{}".to_vec())).await.is_err()
                }
            };
            assert!(refused, "{identity:?}");
        }
        assert_eq!((apns.received(), apns.connections()), (0, 0));
        let mut client = http2(&apns, &pki, None).await.unwrap();
        let (status, _, answer) = push(&mut client, TOKEN, TOPIC).await;
        assert_eq!((status.as_u16(), answer), (403, json!({"reason": "InvalidProviderToken"})));
    })
    .await;
}

#[tokio::test]
async fn answers_can_be_prescribed() {
    limited(async {
        let (apns, pki) = apns().await;
        let mut client = http2(&apns, &pki, Some(&pki.client)).await.unwrap();
        let token = DeviceToken::new(TOKEN).unwrap();
        apns.answer_token(&token, Answer::gone(1_700_000_000_000));
        apns.answer_next(1, Answer::retry_after(503, "ServiceUnavailable", 7));
        apns.answer_next(1, Answer::Accept);

        let response = client.send_request(request(TOKEN, TOPIC, b"{}".to_vec())).await.unwrap();
        assert_eq!(response.status().as_u16(), 503);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(push(&mut client, TOKEN, TOPIC).await.0, StatusCode::OK);
        for _ in 0..2 {
            // The token without regard to case.
            let (status, _, answer) = push(&mut client, &TOKEN.to_uppercase(), TOPIC).await;
            assert_eq!(status.as_u16(), 410);
            assert_eq!(
                answer,
                json!({"reason": "Unregistered", "timestamp": 1_700_000_000_000_i64})
            );
        }
        let other = TOKEN.replace('a', "c");
        assert_eq!(push(&mut client, &other, TOPIC).await.0, StatusCode::OK);

        // What is malformed uses no answer up.
        apns.answer_next(1, Answer::refuse(429, "TooManyRequests"));
        assert_eq!(push(&mut client, &other, "wrong").await.0.as_u16(), 400);
        assert_eq!(push(&mut client, &other, TOPIC).await.0.as_u16(), 429);
    })
    .await;
}

#[tokio::test]
async fn the_push_service_can_go_away_in_every_way() {
    limited(async {
        let (apns, pki) = apns().await;
        // GOAWAY: what is under way goes on, what comes later is refused.
        let mut client = http2(&apns, &pki, Some(&pki.client)).await.unwrap();
        apns.answer_next(1, Answer::Hang);
        let hanging = client.send_request(request(TOKEN, TOPIC, b"{}".to_vec()));
        let hanging = tokio::spawn(hanging);
        assert_eq!(apns.next().await.status, None);
        apns.go_away();
        while client.ready().await.is_ok() {
            let _ = send(&mut client, request(TOKEN, TOPIC, b"{}".to_vec())).await;
        }
        assert!(!hanging.is_finished());
        // The connection itself ends.
        apns.drop_connections();
        hanging.await.unwrap().unwrap_err();

        let mut client = http2(&apns, &pki, Some(&pki.client)).await.unwrap();
        apns.answer_next(1, Answer::Disconnect);
        send(&mut client, request(TOKEN, TOPIC, b"{}".to_vec())).await.unwrap_err();

        apns.refuse().await;
        TcpStream::connect(apns.address()).await.unwrap_err();
        apns.resume().await.unwrap();
        let mut client = http2(&apns, &pki, Some(&pki.client)).await.unwrap();
        assert_eq!(push(&mut client, TOKEN, TOPIC).await.0, StatusCode::OK);
        assert_eq!(apns.pushes().last().unwrap().connection, 3);
        apns.stop().await;
        send(&mut client, request(TOKEN, TOPIC, b"{}".to_vec())).await.unwrap_err();
    })
    .await;
}

async fn apns() -> (Apns, Pki) {
    let pki = Pki::generate(Some(TOPIC)).unwrap();
    (Apns::start(listener().await, &pki).unwrap(), pki)
}

async fn http2(
    apns: &Apns,
    pki: &Pki,
    identity: Option<&Identity>,
) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error>> {
    let mut config = pki.client_config(identity)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(apns.address()).await?;
    let name = ServerName::try_from("localhost")?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let executor = TokioExecutor::new();
    let (client, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn request(token: &str, topic: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::post(format!("https://localhost/3/device/{token}"))
        .header("apns-topic", topic)
        .header("apns-push-type", "background")
        .header("authorization", "bearer secret")
        .body(Full::new(body.into()))
        .unwrap()
}

async fn push(
    client: &mut SendRequest<Full<Bytes>>,
    token: &str,
    topic: &str,
) -> (StatusCode, String, Value) {
    let body = br#"{"aps":{"account-id":"A"}}"#;
    send(client, request(token, topic, body.to_vec())).await.unwrap()
}

/// Status, `apns-id` and JSON of the answer.
async fn send(
    client: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> hyper::Result<(StatusCode, String, Value)> {
    let response = client.send_request(request).await?;
    let id = response.headers()["apns-id"].to_str().unwrap().to_owned();
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, id, serde_json::from_slice(&body).unwrap_or_default()))
}
