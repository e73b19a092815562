//! How many files the system lets this process have open; each socket is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::LimitsConfig;

/// Raises the limit as far as it can be raised without a privilege: to the hard one. Where that is refused, it stays as
/// it is.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// What is wrong, and what to do, where fewer files can be open than `[limits]` lets clients take: a session has a
/// connection to its client and one to the backend.
pub fn shortage(limits: &LimitsConfig) -> Option<String> {
    let LimitsConfig { sessions, waiting, .. } = limits;
    let allowed = getrlimit(Resource::Nofile).maximum?;
    let needed = sessions.saturating_mul(2).saturating_add(*waiting);
    (allowed < needed as u64).then(|| {
        format!(
            "the system lets mailchime have {allowed} files open, and sessions = {sessions} with waiting = \
             {waiting} take {needed}; raise the limit (LimitNOFILE in the unit, ulimit -n), or lower these"
        )
    })
}
