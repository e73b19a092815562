//! Dovecot 2.3: IMAP with all that mailchime's watchers may use, LMTP, and Maildirs.

use std::fs::{self, File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::process::{self, Plan, Process, Stop};
use super::{NOBODY, User, available, deliver_by_lmtp, deliver_to_maildir};
use super::{folder_of_nobody, next_second, pki, users};

/// A master user: `LOGIN bob*boss masterpw`, or PLAIN with `bob` as authorization identity.
pub(crate) const MASTER: User<'static> = ("boss", "masterpw");

/// Signs tokens.
const TOKEN_KEY: &[u8] = b"a key that only Dovecot has, and who gives tokens";

const FILES: [&str; 3] = ["/usr/sbin/dovecot", "/usr/lib/dovecot/imap", "/usr/lib/dovecot/lmtp"];

/// The first number of users who are not nobody.
const FIRST_UID: u32 = 20_000;

/// What is not so in every test. The default starts the least.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// The capabilities to show, or `+X …` to show more; the server honours the others too.
    pub(crate) capability: Option<&'static str>,
    /// IMAP ACL; what another user lets one see is below `shared/NAME/`.
    pub(crate) acl: bool,
    /// Lets [`MASTER`] log in as anybody.
    pub(crate) master: bool,
    /// Takes a [`token`] in place of a password, by XOAUTH2 and OAUTHBEARER.
    pub(crate) tokens: bool,
    /// Names and passwords of more users. Their mail comes by LMTP alone.
    pub(crate) users: Vec<(String, String)>,
    /// How many sessions a user may have from one address; as good as unlimited if none.
    pub(crate) sessions: Option<u32>,
    /// Lines for the end of `dovecot.conf`, where they win.
    pub(crate) extra: &'static str,
}

pub(crate) struct Dovecot {
    /// Without TLS, also for STARTTLS.
    pub(crate) plain: SocketAddr,
    /// With TLS from the first byte.
    pub(crate) tls: SocketAddr,
    process: Process,
    users: Users,
}

/// A token of `user` that holds for an hour (RFC 7519, signed as RFC 7515 section A.1).
pub(crate) fn token(user: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = serde_json::json!({ "sub": user, "iat": now, "exp": now + 3600 });
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, TOKEN_KEY);
    let signature = hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The passwords by name.
struct Users {
    passwords: Vec<(String, String)>,
    /// Moves on with each change: a file is read again if its time in seconds is another one.
    changed: SystemTime,
}

impl Dovecot {
    pub(crate) fn start(test: &str, options: &Options) -> Option<Self> {
        if !available(test, "dovecot", &FILES.map(Path::new)) {
            return None;
        }
        let users = Users::new(&options.users);
        let plan = |folder: &Path, [plain, tls]: [SocketAddr; 2]| {
            lay_out(folder);
            users.write_to(folder);
            fs::write(folder.join("dovecot.conf"), configuration(folder, plain, tls, options))
                .unwrap();
            let mut command = Command::new("/usr/sbin/dovecot");
            command.arg("-F").arg("-c").arg(folder.join("dovecot.conf"));
            // To all: its main process alone leaves sessions as they are.
            Plan { command, ready: None, stop: Stop::Group("TERM"), expendable: true }
        };
        let (process, [plain, tls]) = process::start(plan);
        Some(Self { plain, tls, process, users })
    }

    /// Moves a mail into a mailbox's Maildir, which makes the mailbox. The path of the new file.
    pub(crate) fn deliver(&self, user: &str, mailbox: &str, mail: &[u8]) -> PathBuf {
        deliver_to_maildir(&self.maildir(user, mailbox), mail)
    }

    /// Delivers a mail into INBOX as a mail server does, so that Dovecot knows of it at once.
    pub(crate) fn deliver_by_lmtp(&self, user: &str, mail: &[u8]) {
        deliver_by_lmtp(&self.lmtp(), user, mail);
    }

    /// Where it takes mail by LMTP, for [`try_by_lmtp`](super::try_by_lmtp).
    pub(crate) fn lmtp(&self) -> PathBuf {
        self.process.folder().join("run/lmtp")
    }

    /// Whether it takes this login from this address.
    pub(crate) fn takes(&self, login: &str, password: &str, from: &str) -> bool {
        let mut test = Command::new("doveadm");
        test.arg("-c").arg(self.process.folder().join("dovecot.conf"));
        test.args(["auth", "test", "-x", &format!("rip={from}"), login, password]);
        test.output().unwrap().status.success()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.process.folder().join("dovecot.log")).unwrap()
    }

    /// The folder with a mailbox's `cur`, `new` and `tmp`.
    pub(crate) fn maildir(&self, user: &str, mailbox: &str) -> PathBuf {
        let inbox = self.process.folder().join("mail").join(user);
        if mailbox == "INBOX" { inbox } else { inbox.join(mailbox) }
    }

    /// Counts from the next login on. Waits for the next second, since the server looks at the file
    /// no more than once in each.
    pub(crate) fn set_password(&mut self, user: &str, password: &str) {
        self.users.set(user, password);
        self.users.write_to(self.process.folder());
        next_second();
    }

    /// Ends it in order: sessions get `* BYE`.
    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// Starts it, stopped or not, on the same ports and with the same mail.
    pub(crate) fn restart(&mut self) {
        self.process.restart();
    }
}

// === impl Users ===

impl Users {
    fn new(others: &[(String, String)]) -> Self {
        let first = users().map(|(name, password)| (name.into(), password.into()));
        let passwords = first.chain(others.iter().cloned()).collect();
        Self { passwords, changed: SystemTime::now() }
    }

    fn set(&mut self, user: &str, password: &str) {
        let entry = self.passwords.iter_mut().find(|(name, _)| name == user);
        entry.expect("the user is known").1 = password.to_owned();
        self.changed += Duration::from_secs(1);
    }

    fn write_to(&self, folder: &Path) {
        let line = |(at, (name, password)): (usize, &(String, String))| {
            // A user of the system may have 128 watches of files (inotify(7)), one for each IDLE. So
            // each of many has its own, but for the two whose Maildirs the tests fill themselves.
            let uid = if at < 2 { NOBODY } else { FIRST_UID + u32::try_from(at).unwrap() };
            let home = folder.join("home").join(name);
            let name = name.replace('\\', r"\\");
            format!("{name}:{{PLAIN}}{password}:{uid}:{NOBODY}::{}\n", home.display())
        };
        let (new, path) = (folder.join("passwd.new"), folder.join("passwd"));
        let lines: String = self.passwords.iter().enumerate().map(line).collect();
        fs::write(&new, lines).unwrap();
        File::options().write(true).open(&new).unwrap().set_modified(self.changed).unwrap();
        fs::rename(new, path).unwrap();
    }
}

// === files ===

fn lay_out(folder: &Path) {
    for name in ["run", "state"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    for name in ["mail", "home"] {
        folder_of_nobody(&folder.join(name));
        // Each user makes what is theirs.
        fs::set_permissions(folder.join(name), Permissions::from_mode(0o1777)).unwrap();
    }
    fs::write(folder.join("masters"), format!("{}:{{PLAIN}}{}\n", MASTER.0, MASTER.1)).unwrap();
    let keys = folder.join("keys/default/HS256");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join("default"), STANDARD.encode(TOKEN_KEY)).unwrap();
    let tokens = TOKENS_CONF.replace("{dir}", &folder.display().to_string());
    fs::write(folder.join("tokens.conf"), tokens).unwrap();
    fs::write(folder.join("server.pem"), &pki().server.certificate).unwrap();
    fs::write(folder.join("server.key"), pki().server.expose_private_key()).unwrap();
}

fn configuration(folder: &Path, plain: SocketAddr, tls: SocketAddr, options: &Options) -> String {
    let dir = folder.display();
    let (plain, tls) = (plain.port(), tls.port());
    let sessions = options.sessions.unwrap_or(10_000);
    let capability =
        options.capability.map(|list| format!("imap_capability = {list}")).unwrap_or_default();
    let (acl, imap_acl) = if options.acl { (ACL, "mail_plugins = acl imap_acl") } else { ("", "") };
    let acl = acl.replace("{dir}", &dir.to_string());
    let master = if options.master { MASTERS } else { "" }.replace("{dir}", &dir.to_string());
    let tokens = if options.tokens { TOKENS } else { "" }.replace("{dir}", &dir.to_string());
    let mechanisms = if options.tokens { "xoauth2 oauthbearer" } else { "" };
    let extra = options.extra;
    format!(
        "
protocols = imap lmtp
listen = 127.0.0.1
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/dovecot.log
mail_location = maildir:{dir}/mail/%u:LAYOUT=fs
auth_username_format = %Ln
auth_mechanisms = plain login cram-md5 scram-sha-256 {mechanisms}
auth_master_user_separator = *
auth_failure_delay = 0
disable_plaintext_auth = no
mail_max_userip_connections = {sessions}
ssl = yes
ssl_cert = <{dir}/server.pem
ssl_key = <{dir}/server.key
protocol imap {{
  {imap_acl}
  {capability}
}}
namespace inbox {{
  inbox = yes
}}
{acl}
{master}
{tokens}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {dir}/passwd
}}
userdb {{
  driver = passwd-file
  args = {dir}/passwd
}}
service imap-login {{
  inet_listener imap {{
    port = {plain}
  }}
  inet_listener imaps {{
    port = {tls}
    ssl = yes
  }}
}}
# No penalty for a wrong password, which would delay the next answers.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
{extra}
"
    )
}

const ACL: &str = "
mail_plugins = acl
namespace shared {
  type = shared
  prefix = shared/%%u/
  location = maildir:{dir}/mail/%%u:LAYOUT=fs
  subscriptions = no
  list = children
}
plugin {
  acl = vfile
  # Without it a master sees nothing, not even INBOX.
  acl_user = %u
  acl_shared_dict = file:{dir}/mail/shared-mailboxes.db
}
";

const MASTERS: &str = "
passdb {
  driver = passwd-file
  args = {dir}/masters
  master = yes
}
";

const TOKENS: &str = "
passdb {
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {dir}/tokens.conf
}
";

const TOKENS_CONF: &str = "
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={dir}/keys/
username_attribute = sub
";

mod tests {
    use super::super::client::Client;
    use super::super::{ALICE, BOB, mail};
    use super::*;

    fn logged_in(dovecot: &Dovecot, user: User<'_>) -> Client {
        let mut client = Client::connect(dovecot.plain);
        let answer = client.login(user);
        assert!(answer.starts_with("x OK"), "{answer}");
        client
    }

    #[test]
    fn it_serves_and_tells_of_new_mail() {
        let Some(mut dovecot) = Dovecot::start("dovecot::it_serves", &Options::default()) else {
            return;
        };
        let mut alice = Client::connect(dovecot.plain);
        assert!(alice.login((ALICE.0, "wrong")).starts_with("x NO [AUTHENTICATIONFAILED]"));
        assert!(alice.login(ALICE).starts_with("x OK [CAPABILITY IMAP4rev1 "));
        alice.ask("SELECT INBOX");
        alice.say("x IDLE");
        alice.until("+ ");
        dovecot.deliver(ALICE.0, "INBOX", &mail("by Maildir"));
        alice.until("* 1 EXISTS");
        dovecot.deliver_by_lmtp(ALICE.0, &mail("by LMTP"));
        alice.until("* 2 EXISTS");

        let mut bob = Client::connect_tls(dovecot.tls);
        assert!(bob.login(BOB).starts_with("x OK"));
        dovecot.deliver(BOB.0, "Team", &mail("in a folder"));
        assert_eq!(bob.messages("Team"), 1);

        dovecot.stop();
        alice.until("* BYE");
        dovecot.restart();
        assert_eq!(logged_in(&dovecot, ALICE).messages("INBOX"), 2);
        let folder = dovecot.process.folder().to_owned();
        drop(dovecot);
        assert!(!folder.exists());
    }

    #[test]
    fn a_password_changes_at_once() {
        let Some(mut dovecot) = Dovecot::start("dovecot::a_password", &Options::default()) else {
            return;
        };
        // Of the same length within the same second.
        for password in ["wonder one", "wonder two", "wonder lad"] {
            dovecot.set_password(ALICE.0, password);
            let mut client = Client::connect(dovecot.plain);
            assert!(client.login(ALICE).starts_with("x NO"));
            assert!(client.login((ALICE.0, password)).starts_with("x OK"));
        }
    }

    #[test]
    fn options_take_effect() {
        let options = Options {
            users: vec![("frank".to_owned(), "fr4nk".to_owned())],
            capability: Some("IMAP4rev1 IDLE XTEST"),
            acl: true,
            master: true,
            tokens: true,
            sessions: Some(1),
            extra: "login_greeting = hello",
        };
        let Some(dovecot) = Dovecot::start("dovecot::options_take_effect", &options) else {
            return;
        };
        dovecot.deliver(ALICE.0, "Team", &mail("for the team"));
        let mut alice = Client::connect(dovecot.plain);
        assert!(alice.greeting.ends_with("] hello"), "{}", alice.greeting);
        assert!(alice.login(ALICE).contains("[CAPABILITY IMAP4rev1 IDLE XTEST]"));
        assert!(alice.ask("SETACL Team bob lrs")[0].starts_with("x OK"));
        assert!(Client::connect(dovecot.plain).login(ALICE).starts_with("x NO [LIMIT]"));
        let master = (concat!("bob*", "boss"), MASTER.1);
        assert_eq!(logged_in(&dovecot, master).messages("shared/alice/Team"), 1);
        dovecot.deliver_by_lmtp("frank", &mail("for another"));
        assert_eq!(logged_in(&dovecot, ("frank", "fr4nk")).messages("INBOX"), 1);
    }
}
