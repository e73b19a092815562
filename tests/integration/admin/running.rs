//! The whole program between stand-ins: what it tells moves with what it does.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

use mailchime::app;
use mailchime::config::{self, Config};
use mailchime::demo::backend::DemoBackend;
use serde_json::{Value, json};

use super::{Answer, get, request};
use crate::support::in_process::{InProcess, loopback};
use crate::support::world::{LOGIN, MAIL, PASSWORD, TOKEN};
use crate::support::{limited, listener, skip, until};

/// A backend, and mailchime with `[admin]` in front of it.
async fn start() -> (DemoBackend, InProcess) {
    start_with(|_| {}).await
}

async fn start_with(change: impl FnOnce(&mut Config)) -> (DemoBackend, InProcess) {
    let backend = DemoBackend::start(listener().await, None).unwrap();
    backend.add_account(LOGIN, PASSWORD.as_bytes());
    let world = InProcess::pushing(backend.address(), |config| {
        config.admin.address = Some(config::AdminAddress::Tcp(loopback()));
        change(config);
    });
    let world = world.await;
    (backend, world)
}

/// A phone registers, and its mailbox is watched.
async fn register(world: &InProcess, backend: &DemoBackend) {
    world.register((LOGIN, PASSWORD), &["INBOX"]).await;
    backend.wait_until(|counters| counters.idling == 1).await;
}

impl InProcess {
    fn admin(&self) -> SocketAddr {
        self.mailchime.admin.expect("[admin] is on")
    }

    /// The value of a series.
    async fn metric(&self, series: &str) -> f64 {
        let text = get(self.admin(), "/metrics").await.body;
        let start = format!("mailchime_{series} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    /// Waits until a series has this value.
    async fn until(&self, series: &str, value: f64) {
        until(async || self.metric(series).await == value).await;
    }

    async fn ready(&self) -> Answer {
        get(self.admin(), "/readyz").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_move_with_what_is_done() {
    limited(async {
        let (backend, world) = start().await;
        for series in [
            "sessions",
            "sessions_ended_total{how=\"closed\"}",
            "commands_total{verb=\"xapplepushservice\",result=\"ok\"}",
            "watchers{state=\"watching\",mode=\"idle\"}",
            "changes_total{kind=\"new_mail\"}",
            "pushes_total{transport=\"apns\",outcome=\"accepted\"}",
            "pushes_total{transport=\"webpush\",outcome=\"refused\"}",
            "pushes_total{transport=\"webhook\",outcome=\"gone\"}",
            "pushes_total{transport=\"fcm\",outcome=\"too_many\"}",
            "push_latency_seconds_count{transport=\"apns\"}",
            "relayed_bytes_total{direction=\"to_client\"}",
            "database_errors_total{call=\"register\"}",
            "limits_hit_total{limit=\"command_size\"}",
            "queue_length{queue=\"change_events\"}",
        ] {
            assert_eq!(world.metric(series).await, 0.0, "{series}");
        }

        register(&world, &backend).await;
        world.until("commands_total{verb=\"login\",result=\"ok\"}", 1.0).await;
        world.until("commands_total{verb=\"xapplepushservice\",result=\"ok\"}", 1.0).await;
        world.until("watchers{state=\"watching\",mode=\"idle\"}", 1.0).await;
        assert_eq!(world.metric("database_seconds_count{call=\"register\"}").await, 1.0);
        world.until("sessions", 0.0).await;
        assert!(world.metric("relayed_bytes_total{direction=\"to_client\"}").await > 0.0);

        backend.deliver("alice", "INBOX", MAIL).unwrap();
        world.apns.next().await;
        world.until("pushes_total{transport=\"apns\",outcome=\"accepted\"}", 1.0).await;
        assert_eq!(world.metric("changes_total{kind=\"new_mail\"}").await, 1.0);
        assert_eq!(world.metric("push_latency_seconds_count{transport=\"apns\"}").await, 1.0);
        assert_eq!(
            world.metric("push_latency_seconds_bucket{le=\"60.0\",transport=\"apns\"}").await,
            1.0
        );
        world.until("queue_length{queue=\"pushes\"}", 0.0).await;
        world.until("queue_length{queue=\"settlements\"}", 0.0).await;
        until(async || world.metric("database_seconds_count{call=\"settle\"}").await > 0.0).await;
        let expiry = format!("certificate_expiry_seconds{{route=\"{}\"}}", world.pki.topic);
        assert!(world.metric(&expiry).await > 86_400.0);

        // APNs is away: it shows, and so does what then waits.
        world.apns.refuse().await;
        world.apns.drop_connections();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        until(async || {
            world.metric("pushes_total{transport=\"apns\",outcome=\"unavailable\"}").await > 0.0
        })
        .await;
        world.until("queue_length{queue=\"pushes\"}", 1.0).await;
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_and_the_process_itself_are_measured() {
    limited(async {
        let (backend, mut world) = start().await;
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(world.metric(&format!("build_info{{version=\"{version}\"}}")).await, 1.0);
        assert_eq!(world.metric("accounts").await, 0.0);
        for transport in ["apns", "fcm", "webhook", "webpush"] {
            for state in ["active", "pending"] {
                let labels = format!("transport=\"{transport}\",state=\"{state}\"");
                assert_eq!(world.metric(&format!("subscriptions{{{labels}}}")).await, 0.0);
            }
        }
        let text = get(world.admin(), "/metrics").await.body;
        let of = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
        };
        for name in ["process_cpu_seconds_total", "process_threads", "process_open_fds"] {
            assert!(of(name) > 0.0, "{name}");
        }
        assert!(of("process_max_fds") >= of("process_open_fds"));
        assert!(of("process_resident_memory_bytes") > 1e6);
        assert!(of("process_virtual_memory_bytes") >= of("process_resident_memory_bytes"));
        let now = mailchime::model::Timestamp::now().0 as f64 / 1000.0;
        let age = now - of("process_start_time_seconds");
        assert!((-60.0..86_400.0).contains(&age), "{age}");

        // A start counts what is there already.
        register(&world, &backend).await;
        world.mailchime.stop().await;
        world.mailchime = app::start(&world.config).await.unwrap();
        world.until("accounts", 1.0).await;
        world.until("subscriptions{transport=\"apns\",state=\"active\"}", 1.0).await;
        assert_eq!(world.metric("subscriptions{transport=\"apns\",state=\"pending\"}").await, 0.0);
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say_about_the_metrics() {
    const TEST: &str = "admin::running::promtool_has_nothing_to_say_about_the_metrics";
    if skip::skipped(TEST, "promtool") {
        return;
    }
    let mut promtool = std::process::Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut process = match promtool.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return skip::report(TEST, "promtool is not on this machine");
        }
        process => process.unwrap(),
    };
    limited(async {
        let (backend, world) = start().await;
        register(&world, &backend).await;
        let text = get(world.admin(), "/metrics").await.body;
        process.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_backend_and_the_database() {
    limited(async {
        let (backend, world) = start().await;
        let fine = json!({ "ok": true });
        let answer = world.ready().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let parts = json!({
            "listening": fine, "database": fine, "backend": fine, "push": fine,
        });
        assert_eq!(answer.json()["parts"], parts);

        backend.refuse().await;
        let answer = world.ready().await;
        assert_eq!(answer.status, 503);
        let parts = answer.json()["parts"].clone();
        assert_eq!(
            (&parts["backend"]["ok"], &parts["database"]["ok"]),
            (&json!(false), &json!(true))
        );
        assert!(parts["backend"]["why"].as_str().unwrap().contains("refused"), "{parts}");
        backend.resume().await.unwrap();
        assert_eq!(world.ready().await.status, 200);

        world.mailchime.store.close().await;
        let answer = world.ready().await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["parts"]["database"]["ok"], false);
        let ready = get(world.admin(), "/readyz?exclude=database").await;
        assert_eq!(ready.status, 200, "mail goes on without the database");
        assert_eq!(get(world.admin(), "/healthz").await.status, 200);
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_test_pushes_and_explanations_are_shown() {
    limited(async {
        let (backend, world) = start().await;
        let nobody = get(world.admin(), "/watchers").await.json();
        assert_eq!((&nobody["watchers"], &nobody["nodes"]), (&json!([]), &json!([nobody["node"]])));
        register(&world, &backend).await;
        world.until("watchers{state=\"watching\",mode=\"idle\"}", 1.0).await;

        let watchers = get(world.admin(), "/watchers").await.json();
        let watcher = &watchers["watchers"][0];
        assert_eq!((&watcher["account"], &watcher["state"]), (&json!("alice"), &json!("watching")));
        assert_eq!((&watcher["mode"], &watcher["reason"]), (&json!("idle"), &Value::Null));
        assert_eq!(get(world.admin(), "/watchers?user=bob").await.json()["watchers"], json!([]));

        let answer = request(world.admin(), "POST", "/push?user=alice").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let push = world.apns.next().await;
        assert_eq!(push.token.as_ref().unwrap().as_given(), TOKEN);
        assert!(push.json()["aps"].get("m").is_none());
        let device = &answer.json()["subscriptions"][0];
        assert_eq!(device["accepted"], true, "{device}");
        assert_eq!(device["message_id"].as_str(), push.header("apns-id"), "{device}");
        assert_eq!(device["endpoint"], "8df2a4c1…");
        assert!(!answer.body.contains(TOKEN), "{}", answer.body);

        let answer = request(world.admin(), "POST", "/push?user=alice&mailbox=Notes").await;
        let device = &answer.json()["subscriptions"][0];
        assert_eq!(device["detail"], "it did not register for \"Notes\"", "{device}");
        assert_eq!(world.apns.received(), 1);
        let answer = request(world.admin(), "POST", "/push?user=bob").await;
        assert_eq!(answer.json()["subscriptions"], json!([]));

        let answer = get(world.admin(), "/explain?user=alice").await;
        let explained = answer.json();
        assert_eq!(explained["watcher"]["state"], "watching");
        assert_eq!(explained["watched_by"], nobody["node"]);
        let device = &explained["subscriptions"][0];
        assert_eq!((&device["would_push"], &device["obstacles"]), (&json!(true), &json!([])));
        assert!(!answer.body.contains(TOKEN), "{}", answer.body);
        let answer = get(world.admin(), "/explain?user=alice&mailbox=Notes").await;
        let device = &answer.json()["subscriptions"][0];
        assert_eq!(device["obstacles"], json!(["it did not register for \"Notes\""]));
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_apns_it_says_that_push_is_off() {
    limited(async {
        let (_backend, world) = start_with(|config| config.apns.clear()).await;
        assert_eq!(world.ready().await.status, 200);
        for (method, target) in
            [("GET", "/watchers"), ("POST", "/push?user=alice"), ("GET", "/explain?user=alice")]
        {
            let answer = request(world.admin(), method, target).await;
            assert_eq!(answer.status, 503, "{target}");
            let error = answer.json()["error"].as_str().unwrap().to_owned();
            assert!(error.contains("push is off"), "{error}");
        }
        world.mailchime.stop().await;
    })
    .await;
}
