//! The checks of what tells backends apart, and of who watches at each.

use super::super::{
    BackendConfig, Config, CredentialsMode, LoginTemplate, MasterUser, RouteConfig,
};
use super::{Check, Result};

/// The tables of a configuration that name a backend, as they are called.
pub(super) fn tables(config: &Config) -> impl Iterator<Item = (String, &BackendConfig)> {
    let route = |route: &'_ RouteConfig| format!("[[route]] {}", route.domain);
    let routes = config.routes.iter().map(move |it| (route(it), &it.backend));
    std::iter::once(("[backend]".to_owned(), &config.backend)).chain(routes)
}

impl Check<'_> {
    /// No address is a name: it has a colon.
    pub(super) fn backend_name(&self, key: &str, name: Option<String>) -> Result<Option<String>> {
        let Some(name) = name else { return Ok(None) };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(fits) {
            let allowed = "allowed are 1 to 64 letters and digits of ASCII, \".\", \"-\" and \"_\"";
            return Err(self.refusal(key, format!("{name:?} is no name; {allowed}")));
        }
        Ok(Some(name))
    }

    pub(super) fn master(
        &self,
        table: &str,
        (user, password_file, template_text): (Option<String>, Option<String>, Option<String>),
    ) -> Result<Option<MasterUser>> {
        let key = |name: &str| format!("{table} {name}");
        if user.is_none() && password_file.is_none() && template_text.is_none() {
            return Ok(None);
        }
        let Some(name) = user.filter(|user| !user.is_empty()) else {
            let remedy = "name the user of the IMAP server who may act as any other";
            return Err(self.refusal(&key("master_user"), format!("missing; {remedy}")));
        };
        let password_key = key("master_password_file");
        let password_file = self.file(&password_key, password_file)?.ok_or_else(|| {
            let remedy = "name a file with nothing but the password of master_user";
            self.refusal(&password_key, format!("missing; {remedy}"))
        })?;
        let template = |text: String| {
            LoginTemplate::new(&text).ok_or_else(|| {
                let allowed = "allowed is a text that holds {user} and {master} once each, such as \
                               \"{user}*{master}\"";
                let problem = format!("{text:?} is not understood; {allowed}");
                self.refusal(&key("login_template"), problem)
            })
        };
        let login_template = template_text.map(template).transpose()?;
        Ok(Some(MasterUser { name, password_file, login_template }))
    }

    /// What no table of a backend can know alone: that a name has one address, and who is watched as
    /// a master user.
    pub(super) fn backends(&self, config: &Config) -> Result<()> {
        let all: Vec<_> = tables(config).collect();
        for (at, (table, backend)) in all.iter().enumerate() {
            let table = table.split(' ').next().unwrap_or(table);
            let named_so = |(_, other): &&(String, &BackendConfig)| {
                backend.name.is_some() && other.name == backend.name
            };
            if let Some((_, other)) = all[..at].iter().find(named_so)
                && other.id().address() != backend.id().address()
            {
                let (name, one, two) = (backend.id(), other.id(), backend.id());
                let problem = format!(
                    "{name} is the name of {} and of {}; a name is that of one server",
                    one.address(),
                    two.address()
                );
                return Err(self.refusal(&format!("{table} name"), problem));
            }
            if backend.master.is_some() && config.credentials != CredentialsMode::Master {
                let problem = "has no meaning unless [credentials] mode = \"master\"; remove it, \
                               or set that mode";
                return Err(self.refusal(&format!("{table} master_user"), problem));
            }
        }
        if config.credentials == CredentialsMode::Master
            && all.iter().all(|(_, backend)| backend.master.is_none())
        {
            let problem = "missing, and so in each [[route]]: with [credentials] mode = \"master\" \
                           nobody could be watched; name the user of the IMAP server who may act as \
                           any other";
            return Err(self.refusal("[backend] master_user", problem));
        }
        Ok(())
    }
}
