//! What the unit of systemd keeps from the service, and not from who runs `mailchime check`: folders that it does not see,
//! and folders in which it cannot write (systemd.exec(5)).

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{AdminAddress, Config, DatabaseKind};

const NAME: &str = "mailchime.service";

/// Where units are, the one that counts first.
const FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What `ProtectHome=` hides.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// What `PrivateTmp=` hides.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// What lies outside of the files that `ProtectSystem=strict` is about.
const OF_THE_KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What a unit says of files.
#[derive(Debug, Default)]
pub(super) struct Unit {
    protect_home: String,
    private_tmp: String,
    protect_system: String,
    /// Folders that can be written all the same, each with the setting that says so.
    writable: Vec<(String, PathBuf)>,
    /// What comes from elsewhere.
    bound: Vec<PathBuf>,
}

/// A path that the service cannot use: its key, itself, and why.
#[derive(Debug)]
pub(super) struct Hidden {
    pub(super) key: &'static str,
    pub(super) path: PathBuf,
    pub(super) why: String,
    /// How else it is named.
    pub(super) named: Vec<String>,
}

impl Unit {
    /// The unit of this machine with what an administrator has added; `None` where there is none.
    pub(super) fn find() -> Option<Self> {
        let read = |folder: &&str| fs::read_to_string(Path::new(folder).join(NAME)).ok();
        let mut texts = vec![FOLDERS.iter().find_map(read)?];
        let mut added: Vec<_> = FOLDERS
            .iter()
            .filter_map(|folder| fs::read_dir(Path::new(folder).join(format!("{NAME}.d"))).ok())
            .flat_map(|folder| folder.flatten().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .collect();
        added.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
        texts.extend(added.iter().filter_map(|path| fs::read_to_string(path).ok()));
        Some(Self::of(&texts))
    }

    /// Later texts go before earlier ones.
    fn of(texts: &[String]) -> Self {
        let mut unit = Self::default();
        for (key, value) in
            texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.split_once('='))
        {
            let (key, value) = (key.trim(), value.trim());
            let below = match key {
                "StateDirectory" => "/var/lib",
                "RuntimeDirectory" => "/run",
                "LogsDirectory" => "/var/log",
                "CacheDirectory" => "/var/cache",
                _ => "/",
            };
            // A word may have a sign before it, and another path behind a colon.
            let path = |word: &str| {
                let word = word.trim_start_matches(['-', '+']);
                let of_service = match key {
                    "BindPaths" | "BindReadOnlyPaths" => word.split(':').nth(1),
                    _ => word.split(':').next(),
                };
                Path::new(below).join(of_service.unwrap_or(word))
            };
            let paths = value.split_whitespace().map(path);
            match key {
                "ProtectHome" => value.clone_into(&mut unit.protect_home),
                "PrivateTmp" => value.clone_into(&mut unit.private_tmp),
                "ProtectSystem" => value.clone_into(&mut unit.protect_system),
                // Nothing takes back what was said before, of both kinds of binding at once.
                "BindPaths" | "BindReadOnlyPaths" if value.is_empty() => {
                    unit.bound.clear();
                    unit.writable.retain(|(setting, _)| setting != "BindPaths");
                }
                "ReadWritePaths" | "StateDirectory" | "RuntimeDirectory" | "LogsDirectory"
                | "CacheDirectory"
                    if value.is_empty() =>
                {
                    unit.writable.retain(|(setting, _)| setting != key);
                }
                "ReadWritePaths" | "StateDirectory" | "RuntimeDirectory" | "LogsDirectory"
                | "CacheDirectory" => {
                    unit.writable.extend(paths.map(|path| (key.to_owned(), path)));
                }
                "BindPaths" => {
                    let paths: Vec<_> = paths.collect();
                    unit.writable.extend(paths.iter().map(|path| (key.to_owned(), path.clone())));
                    unit.bound.extend(paths);
                }
                "BindReadOnlyPaths" => unit.bound.extend(paths),
                _ => {}
            }
        }
        unit
    }

    /// Paths of the configuration that the service cannot use.
    pub(super) fn hidden(&self, config: &Config) -> Vec<Hidden> {
        let mut hidden = Vec::new();
        for (key, path) in read(config) {
            let real = real(path);
            if let Some(setting) = self.hides(&real) {
                let why = format!(
                    "the service does not see it, for the unit has {setting}; put it into /etc/mailchime"
                );
                let named = vec![path.display().to_string()];
                hidden.push(Hidden { key, path: path.to_owned(), why, named });
            }
        }
        for (key, path) in written(config) {
            let real = real(path);
            let setting = self.hides(&real).or_else(|| self.forbids(&real));
            if let Some(setting) = setting {
                let why = format!(
                    "the service cannot write there, for the unit has {setting}; use a path below \
                     /var/lib/mailchime, for a socket below /run/mailchime, or allow this one \
                     (ReadWritePaths= by systemctl edit mailchime)"
                );
                let url = (key == "[store] url").then(|| config.store.url.to_string());
                let named = url.into_iter().chain([path.display().to_string()]).collect();
                hidden.push(Hidden { key, path: path.to_owned(), why, named });
            }
        }
        hidden
    }

    /// The setting that keeps the service from seeing a path.
    fn hides(&self, path: &Path) -> Option<&'static str> {
        let is_below = |folder: &&str| path.starts_with(real(Path::new(folder)));
        let is_bound = self.bound.iter().any(|folder| path.starts_with(real(folder)));
        let is_on = |value: &str| matches!(value, "yes" | "true" | "1" | "on");
        match () {
            () if is_bound => None,
            () if (is_on(&self.protect_home) || self.protect_home == "tmpfs")
                && HOMES.iter().any(&is_below) =>
            {
                Some("ProtectHome=yes")
            }
            () if (is_on(&self.private_tmp) || self.private_tmp == "disconnected")
                && TEMPORARY.iter().any(is_below) =>
            {
                Some("PrivateTmp=yes")
            }
            () => None,
        }
    }

    /// The setting that keeps the service from writing to a path.
    fn forbids(&self, path: &Path) -> Option<&'static str> {
        if self.writable.iter().any(|(_, folder)| path.starts_with(real(folder))) {
            return None;
        }
        let is_below = |folders: &[&str]| {
            folders.iter().any(|folder| path.starts_with(real(Path::new(folder))))
        };
        match &*self.protect_system {
            "strict" if !is_below(&OF_THE_KERNEL) => Some("ProtectSystem=strict"),
            "full" if is_below(&["/etc", "/usr", "/boot"]) => Some("ProtectSystem=full"),
            _ => None,
        }
    }
}

/// Without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let from =
        |above: &Path| Some(fs::canonicalize(above).ok()?.join(path.strip_prefix(above).ok()?));
    path.ancestors().find_map(from).unwrap_or_else(|| path.to_owned())
}

/// What a start makes where it is not there.
const MADE: [&str; 2] = ["[credentials] key_file", "[webpush] key_file"];

/// The files that `serve` reads, each with its key.
fn read(config: &Config) -> Vec<(&'static str, &Path)> {
    let is_read = |(key, _): &(&str, &Path)| !MADE.contains(key) && *key != "[store] url";
    let mut files: Vec<_> = config.secret_files().into_iter().filter(is_read).collect();
    let certificates = config.tls.all_certificates();
    files.extend(certificates.map(|pair| ("[tls] certificate", &*pair.certificate)));
    files.extend(config.authorities());
    let routes = config.routes.iter().map(|route| &route.backend);
    let doveadm = std::iter::once(&config.backend).chain(routes).flat_map(|it| &it.doveadm);
    files.extend(doveadm.map(|doveadm| ("doveadm_key_file", &*doveadm.key_file)));
    files
}

/// The paths that `serve` writes to, each with its key.
fn written(config: &Config) -> Vec<(&'static str, &Path)> {
    let is_made = |(key, path): &(&str, &Path)| MADE.contains(key) && !path.exists();
    let mut paths: Vec<_> = config.secret_files().into_iter().filter(is_made).collect();
    if let DatabaseKind::Sqlite(path) = config.store.url.kind() {
        paths.push(("[store] url", path));
    }
    paths.extend(config.record.iter().map(|record| ("[record] folder", &*record.folder)));
    if let Some(AdminAddress::Unix { path, .. }) = &config.admin.address {
        paths.push(("[admin] address", path));
    }
    if let Some(cyrus) = &config.events.cyrus {
        paths.extend(cyrus.socket.iter().map(|path| ("[events] cyrus_socket", &**path)));
        paths.extend(cyrus.stream.iter().map(|path| ("[events] cyrus_stream", &**path)));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackendConfig, BackendTls, RecordConfig, TlsConfig, WebPushConfig};

    const OURS: &str = include_str!("../../../contrib/systemd/mailchime.service");

    /// The keys of what the service cannot use.
    fn keys(added: &str, config: &Config) -> Vec<&'static str> {
        let unit = Unit::of(&[OURS.to_owned(), added.to_owned()]);
        unit.hidden(config).into_iter().map(|hidden| hidden.key).collect()
    }

    fn config() -> Config {
        let tls = TlsConfig::new("/etc/mailchime/server.pem", "/etc/mailchime/server.key");
        let backend = BackendConfig::new("127.0.0.1", 143, BackendTls::None);
        let mut config = Config::new(tls, backend);
        config.store.url = "sqlite:///var/lib/mailchime/mailchime.db".parse().unwrap();
        config.key_file = "/var/lib/mailchime/mailchime.key".into();
        let path = "/run/mailchime/admin.sock".into();
        config.admin.address = Some(AdminAddress::Unix { path, group: None });
        config
    }

    #[test]
    fn what_the_unit_of_the_package_hides_or_forbids_is_named() {
        assert_eq!(keys("", &config()), [""; 0]);
        let mut wrong = config();
        wrong.tls = TlsConfig::new("/home/admin/server.pem", "/root/server.key");
        wrong.store.url = "sqlite:///srv/mailchime/mailchime.db".parse().unwrap();
        wrong.key_file = "/etc/mailchime/no-such.key".into();
        let contact = "mailto:a@example.org";
        wrong.web_push = Some(WebPushConfig::new("/etc/mailchime/no-such-webpush.key", contact));
        wrong.record = Some(RecordConfig { folder: "/tmp/dialogues".into(), max_size: 1 });
        let path = "/run/other/admin.sock".into();
        wrong.admin.address = Some(AdminAddress::Unix { path, group: None });
        let expected = [
            "[tls] private_key",
            "[tls] certificate",
            "[credentials] key_file",
            "[webpush] key_file",
            "[store] url",
            "[record] folder",
            "[admin] address",
        ];
        assert_eq!(keys("", &wrong), expected);
        let why = |key: &str| {
            let hidden = Unit::of(&[OURS.to_owned()]).hidden(&wrong);
            hidden.into_iter().find(|hidden| hidden.key == key).unwrap().why
        };
        assert!(why("[tls] certificate").contains("ProtectHome=yes"));
        assert!(why("[record] folder").contains("PrivateTmp=yes"));
        assert!(why("[store] url").contains("ProtectSystem=strict"));
    }

    #[test]
    fn what_an_administrator_has_allowed_is_not_named() {
        let mut allowed = config();
        allowed.tls = TlsConfig::new("/home/admin/server.pem", "/etc/mailchime/server.key");
        allowed.store.url = "sqlite:///srv/mailchime/mailchime.db".parse().unwrap();
        assert_eq!(keys("", &allowed), ["[tls] certificate", "[store] url"]);
        let added = "[Service]\nProtectHome=read-only\nReadWritePaths=-/srv/mailchime\n";
        assert_eq!(keys(added, &allowed), [""; 0]);
        let added =
            "[Service]\nBindReadOnlyPaths=/srv/x:/home/admin\nBindPaths=/a:/srv/mailchime\n";
        assert_eq!(keys(added, &allowed), [""; 0]);
    }

    #[test]
    fn nothing_takes_back_what_was_allowed_before() {
        let mut allowed = config();
        allowed.store.url = "sqlite:///srv/mailchime/mailchime.db".parse().unwrap();
        let added = |lines: &str| format!("[Service]\nReadWritePaths=/srv/mailchime\n{lines}");
        assert_eq!(keys(&added(""), &allowed), [""; 0]);
        assert_eq!(keys(&added("ReadWritePaths=\n"), &allowed), ["[store] url"]);
        assert_eq!(keys(&added("ReadWritePaths=\nReadWritePaths=/srv\n"), &allowed), [""; 0]);
        assert_eq!(keys(&added("BindPaths=\nLogsDirectory=\n"), &allowed), [""; 0]);
        let bound = "[Service]\nBindPaths=/a:/srv/mailchime\nBindReadOnlyPaths=\n";
        assert_eq!(keys(bound, &allowed), ["[store] url"]);
        let without = keys("[Service]\nStateDirectory=\n", &config());
        assert_eq!(without, ["[credentials] key_file", "[store] url"]);
    }

    #[test]
    fn links_are_followed_on_both_sides() {
        let folder = tempfile::tempdir().unwrap();
        let (data, link) = (folder.path().join("data"), folder.path().join("link"));
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink("data", &link).unwrap();
        for (allowed, used) in [(&link, &data), (&data, &link)] {
            let mut config = config();
            let file = used.join("none/yet/mailchime.db");
            config.store.url = format!("sqlite://{}", file.display()).parse().unwrap();
            let unit = "[Service]\nPrivateTmp=no\nProtectHome=no\n";
            assert_eq!(keys(unit, &config), ["[store] url"]);
            let unit = format!("{unit}ReadWritePaths={}\n", allowed.display());
            assert_eq!(keys(&unit, &config), [""; 0], "{}", used.display());
        }
    }

    #[test]
    fn what_is_hidden_has_all_its_names() {
        let mut wrong = config();
        wrong.store.url = "sqlite:///home/a/mailchime.db".parse().unwrap();
        let hidden = Unit::of(&[OURS.to_owned()]).hidden(&wrong);
        let names: Vec<_> = hidden.iter().flat_map(|hidden| &hidden.named).collect();
        assert_eq!(names, ["sqlite:///home/a/mailchime.db", "/home/a/mailchime.db"]);
    }
}
