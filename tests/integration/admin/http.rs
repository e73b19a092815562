//! The server alone: which requests are answered, and which are refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mailchime::admin::{self, Ask, Context, Part};
use mailchime::metrics::Metrics;
use mailchime::model::Timestamp;
use mailchime::net::counters::LimitCounters;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{exchange, get, request, request_with};
use crate::support::limited;
use crate::support::listener;

/// A server whose parts are the test's.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) metrics: Arc<Metrics>,
    pub(super) counters: Arc<LimitCounters>,
    pub(super) backend: Arc<AtomicBool>,
    watchers_asked: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Answers with what was asked.
fn echo<Q: std::fmt::Debug>(what: &'static str) -> Ask<Q> {
    Ask::new(move |question| {
        let answer = json!({ what: format!("{question:?}") });
        async move { Ok(answer) }
    })
}

impl Server {
    /// How often all watchers, or those of an account, were asked for.
    pub(super) fn watchers_asked(&self) -> usize {
        self.watchers_asked.load(Ordering::Relaxed)
    }

    pub(super) async fn start() -> Self {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let backend = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&backend);
        let parts = vec![
            Part::new("database", async || Ok(())),
            Part::new("backend", move || {
                let seen = seen.load(Ordering::Relaxed);
                async move { if seen { Ok(()) } else { Err("it is gone".to_owned()) } }
            }),
        ];
        let (counters, watchers_asked) = <(Arc<LimitCounters>, Arc<AtomicUsize>)>::default();
        let asked = Arc::clone(&watchers_asked);
        let context = Context {
            registry,
            metrics: Arc::clone(&metrics),
            counters: Arc::clone(&counters),
            hosts: vec!["mail1.example.org".to_owned()],
            parts,
            watchers: Ask::new(move |question| {
                asked.fetch_add(1, Ordering::Relaxed);
                let answer = json!({ "watchers": format!("{question:?}") });
                async move { Ok(answer) }
            }),
            push: echo("push"),
            subscriptions: echo("subscriptions"),
            explain: Ask::new(|_| async { Err::<Value, _>("push is off".to_owned()) }),
            status: Ask::new(|()| async {
                Ok(json!({ "node": "a", "nodes": ["a"], "pushes": [] }))
            }),
            started_at: Timestamp::now(),
        };
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(admin::serve(listener, Arc::new(context), stop.clone()));
        Self { address, metrics, counters, backend, watchers_asked, stop, task }
    }
}

#[tokio::test]
async fn metrics_are_what_prometheus_scrapes() {
    limited(async {
        let server = Server::start().await;
        server.metrics.sessions.set(7);
        // As Prometheus 2.42 asks.
        let accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                      version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let answer = request_with(server.address, "GET", "/metrics", &[("Accept", accept)]).await;
        assert_eq!(answer.status, 200);
        let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert!(answer.head.contains(kind), "{}", answer.head);
        assert!(answer.body.contains("\nmailchime_sessions 7\n"), "{}", answer.body);
        assert!(
            answer.body.contains("\n# TYPE mailchime_login_pushes counter\n"),
            "{}",
            answer.body
        );
        assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);

        // Whatever else asks gets what everything reads.
        let answer = get(server.address, "/metrics").await;
        let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
        assert!(answer.head.contains(kind), "{}", answer.head);
        let counter =
            "\n# TYPE mailchime_login_pushes_total counter\nmailchime_login_pushes_total 0\n";
        assert!(answer.body.contains(counter), "{}", answer.body);
        assert!(
            !answer.body.contains("# EOF") && !answer.body.contains("# UNIT"),
            "{}",
            answer.body
        );
    })
    .await;
}

#[tokio::test]
async fn readiness_names_each_part_and_what_is_wrong_with_it() {
    limited(async {
        let server = Server::start().await;
        let answer = get(server.address, "/readyz").await;
        assert_eq!(answer.status, 200);
        let fine = json!({ "ok": true });
        let parts = json!({ "database": fine, "backend": fine });
        assert_eq!(answer.json(), json!({ "ok": true, "parts": parts }));

        server.backend.store(false, Ordering::Relaxed);
        let answer = get(server.address, "/readyz").await;
        assert_eq!(answer.status, 503);
        let parts = json!({ "database": fine, "backend": { "ok": false, "why": "it is gone" } });
        assert_eq!(answer.json(), json!({ "ok": false, "parts": parts }));
        assert_eq!(get(server.address, "/healthz").await.status, 200);

        let answer = get(server.address, "/readyz?exclude=backend").await;
        assert_eq!((answer.status, &answer.json()["parts"]), (200, &json!({ "database": fine })));
        let answer = get(server.address, "/readyz?exclude=backed").await;
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.json()["error"],
            "there is no part \"backed\"; there are database, backend"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_part_that_says_nothing_is_not_ready() {
    limited(async {
        let mut registry = Registry::default();
        let context = Context {
            metrics: Arc::new(Metrics::new(&mut registry)),
            registry,
            counters: Arc::default(),
            hosts: Vec::new(),
            parts: vec![Part::new("database", std::future::pending::<Result<(), String>>)],
            watchers: Ask::new(|_| std::future::pending()),
            push: echo("push"),
            subscriptions: echo("subscriptions"),
            explain: echo("explain"),
            status: echo("status"),
            started_at: Timestamp::now(),
        };
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(admin::serve(listener, Arc::new(context), stop.clone()));
        let answer = get(address, "/readyz").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["parts"]["database"]["why"], "no answer in 3s");
        assert_eq!(get(address, "/watchers").await.status, 504);
    })
    .await;
}

#[tokio::test]
async fn questions_reach_their_part_with_what_they_are_about() {
    limited(async {
        let server = Server::start().await;
        let address = server.address;
        assert_eq!(get(address, "/watchers").await.json(), json!({ "watchers": "None" }));
        let answer = get(address, "/watchers?user=a%2Bb%40EXAMPLE.org").await;
        assert_eq!(answer.json(), json!({ "watchers": "Some(\"a+b@example.org\")" }));
        let answer = request(address, "POST", "/push?user=alice&mailbox=Entw%C3%BCrfe").await;
        assert_eq!(answer.json(), json!({ "push": "(\"alice\", Some(\"Entwürfe\"))" }));
        let answer = request(address, "POST", "/subscriptions?user=alice").await;
        assert_eq!(answer.json(), json!({ "subscriptions": "\"alice\"" }));
        let answer = get(address, "/explain?user=alice").await;
        assert_eq!((answer.status, answer.json()), (503, json!({ "error": "push is off" })));
    })
    .await;
}

#[tokio::test]
async fn what_is_not_asked_rightly_is_refused() {
    limited(async {
        let server = Server::start().await;
        let address = server.address;
        for (method, target, status) in [
            ("GET", "/nothing", 404),
            ("GET", "/metrics/", 404),
            ("POST", "/metrics", 405),
            ("GET", "/push?user=alice", 405),
            ("DELETE", "/watchers", 405),
            ("POST", "/push", 400),
            ("GET", "/subscriptions?user=alice", 405),
            ("POST", "/subscriptions", 400),
            ("POST", "/subscriptions?user=alice&mailbox=INBOX", 400),
            ("POST", "/push?user=", 400),
            ("POST", "/push?usr=alice", 400),
            ("GET", "/watchers?account=alice", 400),
            ("HEAD", "/metrics", 200),
        ] {
            let answer = request(address, method, target).await;
            assert_eq!(answer.status, status, "{method} {target}: {}", answer.body);
            assert_eq!(answer.body.is_empty(), method == "HEAD", "{method} {target}");
        }
        // A page on the web, in a browser on this machine.
        let page =
            "POST /push?user=alice HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\n\r\n";
        assert!(exchange(address, page).await.starts_with("HTTP/1.1 403 "));
        // Nobody fills the memory.
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(20_000));
        let answer = exchange(address, &long).await;
        assert!(answer.starts_with("HTTP/1.1 4") || answer.is_empty(), "{answer}");
        assert_eq!(get(address, "/healthz").await.status, 200);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_disconnected() {
    limited(async {
        let server = Server::start().await;
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        silent.write_all(b"GET /met").await.unwrap();
        let before = tokio::time::Instant::now();
        let mut rest = Vec::new();
        let _ = silent.read_to_end(&mut rest).await;
        assert!(before.elapsed() < Duration::from_secs(15), "{:?}", before.elapsed());
    })
    .await;
}

#[tokio::test]
async fn it_ends_though_someone_is_connected() {
    limited(async {
        let server = Server::start().await;
        let mut idle = TcpStream::connect(server.address).await.unwrap();
        // It has been accepted once another one is answered.
        get(server.address, "/healthz").await;
        server.stop.cancel();
        server.task.await.unwrap();
        assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
        assert!(TcpStream::connect(server.address).await.is_err());
    })
    .await;
}
