//! The rows of the table that `tests/run.sh` prints at its end.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Most cells at once: each has two servers and two clients.
static ROOM: Semaphore = Semaphore::const_new(4);

/// A cell of the matrix, which has failed unless it says otherwise.
pub(super) struct Cell {
    name: &'static str,
    start: Instant,
    _room: SemaphorePermit<'static>,
}

impl Cell {
    /// Waits until there is room for it.
    pub(super) async fn begin(name: &'static str) -> Self {
        let room = ROOM.acquire().await.expect("it is never closed");
        let cell = Self { name, start: Instant::now(), _room: room };
        // The last row of a name counts: this is what stays of a cell that panics or is killed.
        cell.append("FAILED", "it did not come to its end");
        cell
    }

    /// What it compared is the same; `notes` say what could not be done.
    pub(super) fn passed(self, notes: &[String]) {
        let seconds = self.start.elapsed().as_secs_f32();
        let notes = if notes.is_empty() { "all of it" } else { &notes.join("; ") };
        self.append("ok", &format!("{seconds:2.0} s  {notes}"));
    }

    pub(super) fn skipped(self, reason: &str) {
        self.append("SKIPPED", reason);
    }

    /// A line: name, outcome and notes with tabs between.
    fn append(&self, outcome: &str, notes: &str) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("matrix.tsv");
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        // In one go, for other cells write there, too.
        file.write_all(format!("{}\t{outcome}\t{notes}\n", self.name).as_bytes()).unwrap();
    }
}
