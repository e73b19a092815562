//! What `/etc/mailchime` gets.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;

use super::probe::FoundServer;
use super::{CommandFailure, PILOT, SetupPlan, WatchCredentials, below, page};
use crate::config::BackendTls;
use crate::files;

/// The name of the master user.
pub(super) const MASTER: &str = "mailchime";

/// Of the folder.
const FOLDER_MODE: u32 = 0o750;

/// A file to be made.
pub(super) struct NewFile {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    /// What a dry run shows: nothing of a secret.
    pub(super) shown: Option<String>,
    bytes: Zeroizing<Vec<u8>>,
}

/// All files of the plan.
pub(super) fn files(plan: &SetupPlan) -> Result<Vec<NewFile>, CommandFailure> {
    let folder = below(&plan.root, "etc/mailchime");
    let copy = |from: &Path, to: &str| {
        let read = files::read(from, files::LARGEST);
        let (bytes, _) =
            read.map_err(|error| CommandFailure::Failed(format!("{}: {error}", from.display())))?;
        Ok(NewFile { path: folder.join(to), mode: 0o640, shown: None, bytes })
    };
    let text = configuration(plan);
    let bytes = Zeroizing::new(text.clone().into_bytes());
    let mut files = vec![
        NewFile { path: folder.join("proxy.toml"), mode: 0o640, shown: Some(text), bytes },
        copy(&plan.certificate.certificate, "server.pem")?,
        copy(&plan.certificate.private_key, "server.key")?,
    ];
    if let BackendTls::StartTls(trust) | BackendTls::Implicit(trust) = &plan.server.tls
        && let Some(ca) = &trust.ca
    {
        files.push(copy(ca, "backend-ca.pem")?);
    }
    if plan.credentials == WatchCredentials::Master {
        // 244 bits by chance.
        let password = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        let [first, second] = password.map(|part| part.simple().to_string());
        let bytes = Zeroizing::new(format!("{first}{second}\n").into_bytes());
        let path = folder.join("master.password");
        // Nobody but mailchime may read it.
        files.push(NewFile { path, mode: 0o600, shown: None, bytes });
    }
    Ok(files)
}

/// The `proxy.toml` that the Debian package brings to be filled in, below the root.
const PACKAGED: &str = "usr/share/mailchime/proxy.toml";

/// What to say where one of the files is there, so that none is written. `root` is where the package's files are
/// looked for.
pub(super) fn already_there(all: &[NewFile], root: &Path) -> Option<String> {
    let there = all.iter().filter(|file| fs::symlink_metadata(&file.path).is_ok());
    let there: Vec<_> = there.map(|file| file.path.display().to_string()).collect();
    if there.is_empty() {
        return None;
    }
    let moves: String = there.iter().map(|file| format!("\n  mv {file} {file}.before")).collect();
    let packaged = below(root, PACKAGED);
    let is_as_it_came = |file: &Path| {
        let read = |path: &Path| files::read(path, files::LARGEST).ok().map(|(bytes, _)| bytes);
        read(&packaged).is_some_and(|bytes| read(file).is_some_and(|file| *file == *bytes))
    };
    let note = match all.iter().map(|file| &file.path).find(|path| is_as_it_came(path)) {
        Some(path) => format!("\n{} is the package's, and nobody has changed it.", path.display()),
        None => String::new(),
    };
    Some(format!(
        "there is already {}; nothing was written.{note}\nMove it away and run setup again:\n{moves}",
        there.join(", ")
    ))
}

/// Writes all, or none where one is there or cannot be written.
pub(super) fn write(all: &[NewFile], root: &Path) -> Result<(), CommandFailure> {
    if let Some(why) = already_there(all, root) {
        return Err(CommandFailure::Failed(format!(
            "{why}\n\nWith --dry-run setup shows what it would write"
        )));
    }
    for (number, file) in all.iter().enumerate() {
        write_one(file).map_err(|error| {
            // Nobody uses yet what was made a moment ago.
            for made in &all[..number] {
                let _ = fs::remove_file(&made.path);
            }
            CommandFailure::Failed(format!(
                "{}: cannot be written: {error}; nothing is left of what setup wrote",
                file.path.display()
            ))
        })?;
    }
    Ok(())
}

fn write_one(file: &NewFile) -> io::Result<()> {
    if let Some(folder) = file.path.parent()
        && !folder.exists()
    {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        // Whatever the umask of the one who runs this takes away: mailchime's group is to read it.
        fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))?;
    }
    files::create(&file.path, &file.bytes, file.mode)
}

/// The lines of `[backend]` for this server.
pub(super) fn backend(server: &FoundServer, credentials: WatchCredentials) -> String {
    let mut text = format!("[backend]\naddress = {}\n", quoted(&server.address()));
    let (tls, trust) = match &server.tls {
        BackendTls::None => ("none", None),
        BackendTls::StartTls(trust) => ("starttls", Some(trust)),
        BackendTls::Implicit(trust) => ("implicit", Some(trust)),
    };
    text += &format!("tls = \"{tls}\"\n");
    if let Some(trust) = trust {
        if trust.server_name != server.host {
            text += &format!("server_name = {}\n", quoted(&trust.server_name));
        }
        if trust.ca.is_some() {
            text += "ca = \"backend-ca.pem\"\n";
        }
        if let Some(pin) = server.pin {
            text += &format!("tls_pin_sha256 = \"{pin}\"\n");
        }
    }
    if server.service() == "dovecot" {
        text += "send_id = true    # the client's address, for Dovecot's log and limits\n";
    }
    if credentials == WatchCredentials::Master {
        text +=
            &format!("master_user = \"{MASTER}\"\nmaster_password_file = \"master.password\"\n");
    }
    text
}

/// A string as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The text of `proxy.toml`.
fn configuration(plan: &SetupPlan) -> String {
    let path = |path: &str| below(&plan.root, path).display().to_string();
    let mut text = format!(
        "# Written by `mailchime setup`. The manual of all keys: {}.\n",
        page(&plan.root, "proxy.toml")
    );
    let pilot = match plan.port == PILOT {
        true => "    # the pilot; 993 once mailchime takes over",
        false => "",
    };
    let (everywhere, port) = (plan.everywhere, plan.port);
    text += &format!("\n[[listener]]\naddress = \"{everywhere}:{port}\"{pilot}\n");
    text += "\n[tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n";
    text += &format!("\n{}", backend(&plan.server, plan.credentials));
    let database = format!("sqlite://{}", path("var/lib/mailchime/mailchime.db"));
    text += &format!("\n[store]\nurl = {}\n", quoted(&database));
    let mode = match plan.credentials {
        WatchCredentials::Stored => "stored",
        WatchCredentials::Master => "master",
    };
    let key_file = quoted(&path("var/lib/mailchime/mailchime.key"));
    text += &format!("\n[credentials]\nmode = \"{mode}\"\nkey_file = {key_file}\n");
    let socket = format!("unix:{}", path("run/mailchime/admin.sock"));
    text += &format!("\n[admin]\naddress = {}\n", quoted(&socket));
    text += "\n# With a certificate from Apple, and not before:\n\
             # [apns]\n# certificate = \"apns.pem\"\n# private_key = \"apns.key\"\n";
    text
}
