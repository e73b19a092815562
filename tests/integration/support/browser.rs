//! Real browsers, driven by the scripts of `tests/browser`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use tokio::sync::mpsc;

use super::{skip, until};

/// A script of `tests/browser` with a browser: it says what it wants done, line by line.
pub(crate) struct BrowserScript {
    process: Child,
    input: ChildStdin,
    output: mpsc::UnboundedReceiver<String>,
}

impl BrowserScript {
    /// Starts it, with what it is to do behind its name. `None`, said aloud, where it or its browser is not here.
    pub(crate) fn start(test: &str, name: &str, browser: &str, folder: &Path) -> Option<Self> {
        let clients = std::env::var_os("MAILCHIME_CLIENTS").map_or_else(
            || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients"),
            Into::into,
        );
        for needed in [browser, "puppeteer-core", "axe-core"] {
            if skip::skipped(test, needed) {
                return None;
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            |program: &str| std::env::split_paths(&path).any(|it| it.join(program).exists());
        let absent = [browser, "node"].into_iter().find(|program| !found(program));
        let absent = absent.or_else(|| (!clients.join(PUPPETEER).exists()).then_some(PUPPETEER));
        let absent = absent.or_else(|| (!clients.join(AXE).exists()).then_some(AXE));
        if let Some(absent) = absent {
            skip::report(test, &format!("{absent} is not on this machine"));
            return None;
        }
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
        let mut words = name.split(' ');
        let mut process = Command::new("node")
            .arg(scripts.join(words.next().unwrap_or_default()))
            .args(words)
            .env("FOLDER", folder)
            .env("PUPPETEER", clients.join(PUPPETEER))
            .env("AXE", clients.join(AXE))
            .env("HOME", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (lines_of, output) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = lines_of.send(line);
            }
        });
        Some(Self { process, input, output })
    }

    /// What it wants next; `None` at its end, which must be a good one.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let line = self.output.recv().await;
        if line.is_none() {
            let mut status = None;
            until(async || {
                status = self.process.try_wait().unwrap();
                status.is_some()
            })
            .await;
            assert!(status.unwrap().success(), "the script failed; it says above why");
        }
        line
    }

    pub(crate) fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

impl Drop for BrowserScript {
    fn drop(&mut self) {
        // Its browser ends with its connection to the script.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const PUPPETEER: &str = "puppeteer-core-24.43.1";
const AXE: &str = "axe-core-4.14.1";
