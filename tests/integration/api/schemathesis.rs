//! `docs/api.yaml` by another's judgement: Schemathesis makes requests of it, right and wrong ones, and looks whether
//! mailchime answers as the document says.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::paper::Paper;
use super::{ALICE, ApiWorld};
use crate::support::program::Process;
use crate::support::{limited, skip};

const NAME: &str = "schemathesis-4.32.5";

/// Where the tool is wrong. A document cannot say which transports and names there are, so what fits the document may be refused. Beside the
/// header that it always sends, the body of a login is not read, so any body is taken.
const RULES: &str = "[checks]
positive_data_acceptance.enabled = false
[[operations]]
include-operation-id = \"openSession\"
checks.negative_data_rejection.enabled = false
";

/// Where it is, or what is missing of it, said aloud.
fn installed(test: &str) -> Option<PathBuf> {
    if ["schemathesis", "python3"].into_iter().any(|needed| skip::skipped(test, needed)) {
        return None;
    }
    let clients = std::env::var_os("MAILCHIME_CLIENTS").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients"),
        Into::into,
    );
    let folder = clients.join(NAME);
    if !folder.join("schemathesis/__init__.py").exists() {
        skip::report(test, &format!("{NAME} is not on this machine"));
        return None;
    }
    Some(folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_answers_as_the_document_says_by_schemathesis() {
    limited(async {
        let test = "api::schemathesis::the_server_answers_as_the_document_says_by_schemathesis";
        let Some(folder) = installed(test) else { return };
        // A stream has no end, which the tool would wait for. So each one is one too many.
        let api = ApiWorld::with(|config| config.api.streams_per_account = 0).await;
        let _paper = Paper::subscribable(&api);
        let address = api.world.mailchime.api.expect("[api] is on");
        let rules = api.world.file("schemathesis.toml");
        // Else each request would come from a page of another site.
        let origin = format!("https://localhost:{}", address.port());
        std::fs::write(&rules, format!("{RULES}[parameters]\n\"header.Origin\" = \"{origin}\"\n"))
            .unwrap();
        let mut command = Command::new("python3");
        command
            .args(["-m", "schemathesis.cli", "--no-color", "--config-file"])
            .arg(rules)
            .arg("run")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.yaml"))
            .arg(format!("--url=https://localhost:{}", address.port()))
            .arg(format!("--tls-verify={}", api.world.file("ca.pem").display()))
            .arg(format!("--auth={ALICE}:secret"))
            .args(["--max-examples=10", "--request-timeout=10", "--seed=1"])
            .args(["--generation-database=none", "--phases=examples,coverage,fuzzing"])
            .current_dir(api.world.file(""))
            .env("PYTHONPATH", folder)
            .env("HOME", api.world.file(""))
            .stdin(Stdio::null());
        let mut process = Process::spawn(command);
        let code = process.end().await.code();
        let said = [&process.stdout, &process.stderr].map(|lines| lines.seen.join("\n")).concat();
        assert_eq!(code, Some(0), "{said}");
    })
    .await;
}
