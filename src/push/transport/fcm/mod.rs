//! Firebase Cloud Messaging, HTTP v1: who we are to it (`account`, `token`), how it is spoken to (`message`,
//! `judge`), and what apps ask for (`enrol`). Each project is a route of its own, by the project's name.

mod account;
pub(super) mod check;
mod client;
mod enrol;
pub(super) mod judge;
mod message;
pub(super) mod token;

use std::path::PathBuf;
use std::sync::Arc;

use self::account::ServiceAccount;
use self::client::{FcmClient, REQUEST_TIMEOUT};
use self::enrol::FcmEnrol;
use self::message::FcmMessages;
use super::enrol::Transports;
use super::{Route, Routes, Verdict};
use crate::config::FcmConfig;
use crate::model::TransportId;
use crate::net::dial::Dialer;
use crate::net::https::{HttpsClient, client_tls};
use crate::net::resolve::NameResolver;
use crate::net::tunnel::Tunnel;

/// The name of the transport.
pub const TRANSPORT: &str = "fcm";

/// Most messages of one project under way at once.
const IN_FLIGHT: usize = 500;

/// One project.
#[derive(Clone, Debug)]
pub struct FcmProject {
    /// Its name at Google.
    pub name: Arc<str>,
    /// The file that says who we are.
    pub file: PathBuf,
    apps: Vec<String>,
    client: FcmClient,
    messages: FcmMessages,
}

impl FcmProject {
    /// Reads the files that `config` names, and opens no socket.
    ///
    /// # Errors
    /// Which key is at fault, and what is wrong.
    pub fn load(config: &FcmConfig, resolver: &NameResolver) -> Result<Self, String> {
        let account = ServiceAccount::load(&config.service_account_file)
            .map_err(|why| format!("[[fcm]] service_account_file: {why}"))?;
        let tls = client_tls(config.ca.as_deref()).map_err(|why| format!("[[fcm]] ca: {why}"))?;
        let messages = FcmMessages::new(&config.endpoint, &account.project)
            .ok_or("[[fcm]] endpoint: is not understood; give \"https://host:port\"")?;
        let tunnel = config.proxy.as_ref().map(Tunnel::of).transpose();
        let tunnel = tunnel.map_err(|why| format!("[[fcm]] proxy_login_file: {why}"))?;
        let dialer = Dialer::new(resolver.clone(), tunnel, tls);
        let name = account.project.as_str().into();
        let client = FcmClient::new(account, HttpsClient::new(dialer, REQUEST_TIMEOUT));
        let file = config.service_account_file.clone();
        Ok(Self { name, file, apps: config.apps.clone(), client, messages })
    }

    /// Has FCM check a message that it delivers to nobody: [`Verdict::Accepted`] where nothing is wrong.
    pub async fn probe(&self) -> Verdict {
        self.client.probe(&self.messages).await
    }

    /// Whether Google refused to give an access token for the account, when it was asked last.
    pub fn is_refused(&self) -> bool {
        self.client.is_refused()
    }
}

/// The projects of a configuration, made and not yet published.
#[derive(Debug)]
pub struct FcmSetup {
    projects: Vec<FcmProject>,
    enrol: FcmEnrol,
}

impl FcmSetup {
    /// Reads the files of all projects.
    ///
    /// # Errors
    /// As [`FcmProject::load`], or that two tables are for one project.
    pub fn load(config: &[FcmConfig], resolver: &NameResolver) -> Result<Self, String> {
        let mut projects: Vec<FcmProject> = Vec::new();
        let mut enrol = FcmEnrol::default();
        for table in config {
            let project = FcmProject::load(table, resolver)?;
            if projects.iter().any(|other| other.name == project.name) {
                let name = &project.name;
                return Err(format!("[[fcm]]: two tables are for the project {name}; remove one"));
            }
            enrol.add(&project.name, &project.apps);
            projects.push(project);
        }
        Ok(Self { projects, enrol })
    }

    /// Publishes a route for each project, in place of those of before, and has `transports` enrol their apps.
    pub fn publish(self, routes: &Routes, transports: &Transports) {
        let Self { projects, enrol } = self;
        let id = TransportId::new(TRANSPORT);
        transports.set(id.clone(), (!projects.is_empty()).then(|| Arc::new(enrol) as _));
        let route = |project: FcmProject| {
            (project.name, Route::new(project.messages, project.client, IN_FLIGHT))
        };
        routes.publish(&id, projects.into_iter().map(route));
    }
}
