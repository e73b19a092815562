//! The status page of nodes that share a database.

use super::{Cluster, Node};
use crate::admin;
use crate::support::limited;

/// The page of this node, and the parts below its headings.
async fn page(node: &mut Node) -> String {
    node.server.process.stderr.rewind();
    let address = node.server.admin_address().await;
    let answer = admin::get(address, "/").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("<h2 id=\"{id}\">")).expect(id);
    rest.split("</section>").next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_names_all_nodes_and_those_that_are_gone_behind_what_needs_somebody() {
    let test = "program::nodes::page::it_names_all_nodes_and_those_that_are_gone_behind_what_needs_somebody";
    let Some(cluster) = Cluster::new(test).await else { return };
    limited(async {
        let mut a = cluster.start("a", "").await;
        let mut b = cluster.start("b", "").await;
        for (node, other) in [(&mut a, "b"), (&mut b, "a")] {
            node.sees("a b").await;
            let page = page(node).await;
            let nodes = section(&page, "nodes");
            assert!(nodes.contains(&format!("<bdi>{}</bdi> (this one)", node.name)), "{nodes}");
            assert!(nodes.contains(&format!("<li><bdi>{other}</bdi></li>")), "{nodes}");
            assert!(!nodes.contains("gone"), "{nodes}");
        }
        b.server.process.kill();
        a.sees("a").await;
        // What needs somebody comes first, whatever became of the nodes.
        cluster.world.backend.refuse().await;
        let page_of_a = page(&mut a).await;
        let first = page_of_a.split("<h2 ").nth(1).unwrap();
        assert!(
            first.starts_with("id=\"warnings\"") && first.contains("backend is not ready"),
            "{page_of_a}"
        );
        let nodes = section(&page_of_a, "nodes");
        assert!(nodes.contains("<bdi>a</bdi> (this one)"), "{nodes}");
        assert!(nodes.contains("<bdi>b</bdi> <span class=\"bad\">gone</span> <time "), "{nodes}");

        let b = cluster.start("b", "").await;
        a.sees("a b").await;
        let page = page(&mut a).await;
        assert!(!section(&page, "nodes").contains("gone"), "{page}");
        drop(b);
    })
    .await;
}
