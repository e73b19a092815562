//! The seam between notices and the services that carry them: a second transport needs nothing
//! of what stands above it to change.

use mailchime::config;
use mailchime::model::{PushEndpoint, Subscription, TransportId};
use mailchime::push::transport::{Route, Routes};

use super::fake::Fake;
use crate::support::pushing::{Disk, EVER, Running, alice, rows};
use crate::support::{limited, until};

fn subscription(endpoint: &str) -> Subscription {
    Subscription {
        account: alice(),
        transport: TransportId::new("fake"),
        endpoint: PushEndpoint::new(endpoint, endpoint),
        app: "reader".into(),
        route: "table".into(),
        options: "{}".into(),
        secrets: None,
        expires_at: None,
    }
}

#[tokio::test]
async fn each_verdict_of_a_second_transport_moves_or_marks_or_removes_as_those_of_the_first_do() {
    limited(async {
        let endpoints = ["well", "gone", "moved", "busy", "large", "ill", "lost"];
        let disk = Disk::with(&endpoints.map(subscription)).await;
        let (fake, routes) = (Fake::default(), Routes::default());
        let route = Route::new(fake.clone(), fake.clone(), 1);
        routes.publish(&TransportId::new("fake"), [("table".into(), route)]);
        let mut running = Running::over(&disk, &routes, config::PushConfig::default());
        running.mail("INBOX", 2).await;
        until(async || fake.0.lock().unwrap().len() >= endpoints.len()).await;
        running.end().await;

        let mut asked = fake.0.lock().unwrap().clone();
        asked.sort();
        asked.dedup();
        let mut expected = endpoints.map(|endpoint| format!("{endpoint} INBOX"));
        expected.sort();
        assert_eq!(asked, expected);
        assert_eq!(disk.told().await, rows(2, 1));
        let mut owed = disk.owed().await;
        owed.sort();
        assert_eq!(owed, ["bu INBOX", "il INBOX", "la INBOX", "mo INBOX"]);
        let targets = disk.store.targets(&alice(), EVER).await.unwrap();
        let mut left: Vec<_> =
            targets.iter().map(|target| target.subscription.endpoint.as_given()).collect();
        left.sort();
        assert_eq!(left, ["busy", "ill", "large", "moved", "well"]);
    })
    .await;
}
