//! `[record]`: sessions as dialogues, to find a fault.

use std::path::PathBuf;

use super::check::{Check, CheckResult, KIB, MIB};

/// `[record]`: sessions as dialogues, to find a fault.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordConfig {
    /// A folder that exists.
    pub folder: PathBuf,
    /// Bytes of one session's file.
    pub max_size: u64,
}

table!(RawRecord {
    folder: Option<String>,
    max_size: Option<String>,
});

impl Check<'_> {
    pub(super) fn record(&self, raw: RawRecord) -> CheckResult<Option<RecordConfig>> {
        let mut max_size = MIB as usize;
        self.size("[record] max_size", raw.max_size, KIB..=1024 * MIB, &mut max_size)?;
        let Some(folder) = raw.folder else { return Ok(None) };
        let folder = self.folder().join(folder);
        if !folder.is_dir() {
            let problem = format!("{} is no folder; make it", folder.display());
            return Err(self.refusal("[record] folder", problem));
        }
        Ok(Some(RecordConfig { folder, max_size: max_size as u64 }))
    }
}
