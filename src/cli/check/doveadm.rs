//! doveadm's HTTP API, where a backend has it.

use hyper::StatusCode;

use super::Report;
use crate::net::doveadm::{Doveadm, DoveadmError};

/// Whether it answers, and takes the key.
pub(super) async fn doveadm(part: &str, doveadm: &Doveadm, report: &mut Report) {
    let (part, place) = (format!("{part} doveadm_url"), doveadm.place());
    // No command at all is answered, too, and Dovecot logs nothing of it.
    let error = match doveadm.status(&[]).await {
        Ok(_) => {
            return report.ok(&part, format_args!("{place}: doveadm answers, and takes the key"));
        }
        Err(error) => error,
    };
    let remedy = match &error {
        DoveadmError::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            "write what Dovecot has as doveadm_api_key into doveadm_key_file"
        }
        DoveadmError::Status(StatusCode::NOT_FOUND) => {
            "the path is /doveadm/v1: correct the URL, or see whether it is doveadm that listens there"
        }
        DoveadmError::Http(_) => {
            "see whether Dovecot's `service doveadm` has an `inet_listener http` with this port, and with \
             `ssl = yes` for https"
        }
        DoveadmError::Status(_) | DoveadmError::Unreadable => {
            "see whether it is doveadm that listens there, and what Dovecot's log says"
        }
    };
    report.failed(&part, format_args!("{place}: {error}; {remedy}"));
}
