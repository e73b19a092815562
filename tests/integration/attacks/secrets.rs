//! What is left lying about after a full run: no password, bearer token, private key or whole device
//! token is in a log, a file, an answer, the environment or the command line, in any usual form.
//!
//! What each line of the log should say is in `program::logs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use mailchime::demo::apns::Answer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::line::Client;
use crate::support::servers::dovecot::{Dovecot, Options, token};
use crate::support::world::{LOGIN, MAIL, PASSWORD, Server, TOKEN, World, registration};
use crate::support::{limited, sasl};

const WRONG: &str = "blunder land";
const CHANGED: &str = "looking glass";
const MASTER: &str = "jabberwocky and bandersnatch";
const BEARER: &str = "ya29.AHES6ZRVmB7fkLtd1XTmq6mo0S1wqZZi3";
const PROOF: &str = "b913a602c7eda7a495b4e6e7334d3890";

/// How a secret may be written, so that any text that has it has one of these.
pub(super) fn forms(secret: &str) -> Vec<Vec<u8>> {
    let bytes = secret.as_bytes();
    let mut forms = vec![secret.to_owned()];
    // In base64, whatever stands before it and behind it: the characters that it makes alone.
    for before in 0..3_usize {
        let text = BASE64_STANDARD_NO_PAD.encode([&b"\0\0"[..before], bytes].concat());
        let whole = text.len() - usize::from(!(before + bytes.len()).is_multiple_of(3));
        forms.push(text[(before * 8).div_ceil(6)..whole].to_owned());
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    forms.extend([hex.to_uppercase(), hex]);
    let decimal: Vec<_> = bytes.iter().map(ToString::to_string).collect();
    forms.extend([decimal.join(", "), secret.replace(' ', "%20"), secret.replace(' ', "+")]);
    forms.into_iter().map(String::into_bytes).collect()
}

/// The lines of base64 of a private key.
fn key_lines(pem: &str) -> Vec<String> {
    let lines = pem.lines().filter(|line| !line.starts_with('-') && line.len() > 20);
    lines.map(str::to_owned).collect()
}

/// Everything that was heard or is left, by where it was.
struct Left(Vec<(String, Vec<u8>)>);

impl Left {
    fn add(&mut self, place: &str, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.to_owned(), bytes.into()));
    }

    /// The log, and the files before the program ends and after.
    async fn add_end(&mut self, world: &World, mut server: Server) {
        // What was written last is in the -wal while it runs.
        self.add_files(world);
        server.process.signal("TERM");
        assert_eq!(server.process.end().await.code(), Some(0));
        self.add_files(world);
        let log = server.process.stderr.seen.join("\n");
        assert!(log.contains("\"DEBUG\"") && log.contains("session ended"), "{log}");
        self.add("the log", log);
    }

    /// The files of `world`, with what was recorded of more than ten sessions.
    fn add_files(&mut self, world: &World) {
        let mut folders = vec![world.folder().to_owned()];
        let mut recordings = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                recordings += usize::from(path.extension().is_some_and(|name| name == "imap"));
                self.add(&path.display().to_string(), fs::read(&path).unwrap());
            }
        }
        assert!(recordings > 10, "{recordings} recordings");
    }

    #[track_caller]
    fn has_none_of(&self, secret: &str, but: impl Fn(&str) -> bool) {
        for form in forms(secret) {
            for (place, bytes) in self.0.iter().filter(|(place, _)| !but(place)) {
                let found = memchr::memmem::find(bytes, &form);
                assert_eq!(found, None, "{} is in {place}", form.escape_ascii());
            }
        }
    }
}

/// A login in each way, with good and with wrong secrets.
async fn log_in_in_each_way(world: &World, server: &Server) -> Vec<String> {
    let encode = |text: String| base64::prelude::BASE64_STANDARD.encode(text);
    let bearer = format!("user={LOGIN}\x01auth=Bearer {BEARER}\x01\x01");
    let oauth = format!("n,a={LOGIN},\x01auth=Bearer {BEARER}\x01\x01");
    let mut heard = Vec::new();
    for password in [WRONG, PASSWORD] {
        let plain = encode(format!("\0{LOGIN}\0{password}"));
        let [login, word] = [LOGIN, password].map(|text| encode(text.to_owned()));
        for lines in [
            vec![format!("LOGIN {LOGIN} \"{password}\"")],
            vec![format!("LOGIN {LOGIN} {{{}}}", password.len()), password.to_owned()],
            vec![format!("AUTHENTICATE PLAIN {plain}")],
            vec!["AUTHENTICATE PLAIN".to_owned(), plain.clone()],
            vec!["AUTHENTICATE LOGIN".to_owned(), login, word],
            vec![format!("AUTHENTICATE XOAUTH2 {}", encode(bearer.clone()))],
            vec![format!("AUTHENTICATE OAUTHBEARER {}", encode(oauth.clone()))],
            vec!["AUTHENTICATE CRAM-MD5".to_owned(), encode(format!("{LOGIN} {PROOF}"))],
            // Malformed, each of them.
            vec![format!("LOGIN {LOGIN} {password} {BEARER}")],
            vec![format!("XYZ {plain}")],
            vec![format!("AUTHENTICATE PLAIN {plain} {plain}")],
        ] {
            let mut client = world.client(server).await;
            heard.push(answered(&mut client, &lines).await);
        }
    }
    heard
}

/// Says the lines of a command, each when it is asked for; the answer.
async fn answered(client: &mut Client, lines: &[String]) -> String {
    let mut lines = lines.iter();
    client.send(format!("a {}\r\n", lines.next().unwrap()).as_bytes()).await;
    loop {
        let line = client.line().await;
        if !line.starts_with('+') {
            return line;
        }
        // A refused token, or a mechanism that asks for more, is given up.
        let next = lines.next().map_or("*", String::as_str);
        client.send(format!("{next}\r\n").as_bytes()).await;
    }
}

pub(super) async fn http(address: &str, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

/// Has the program log and record all that it can, and hear all mechanisms.
fn keep_everything(world: &World) {
    world.configure(
        "[log]",
        "[auth]\nrelay = \"always\"\n[record]\nfolder = \"record\"\n[limits]\n\
         failure_delay = \"1ms\"\nlogin_failures_per_minute = 1000\n\
         account_failures_per_minute = 1000\n[log]",
    );
    fs::create_dir(world.file("record")).unwrap();
    world.configure("\"info,mailchime=debug\"", "\"trace\"");
}

#[expect(clippy::too_many_lines, reason = "one story")]
async fn nothing_is_left(mode: &str) {
    let world = World::new().await;
    for capability in ["AUTH=XOAUTH2", "AUTH=OAUTHBEARER", "AUTH=CRAM-MD5"] {
        world.backend.behave(|behaviour| behaviour.add(capability));
    }
    let master = world.file("master.password");
    fs::write(&master, format!("{MASTER}\n")).unwrap();
    fs::set_permissions(&master, fs::Permissions::from_mode(0o600)).unwrap();
    if mode == "master" {
        world.configure(
            "[backend]",
            "[backend]\nmaster_user = \"boss\"\nmaster_password_file = \"master.password\"\n\
             login_template = \"{user}*{master}\"",
        );
        world.backend.add_account("boss", MASTER.as_bytes());
        world.backend.add_account(&format!("{LOGIN}*boss"), MASTER.as_bytes());
    }
    world.configure("[store]", &format!("[credentials]\nmode = \"{mode}\"\n[store]"));
    keep_everything(&world);
    let mut server = world.serve_with_admin().await;
    let mut left = Left(Vec::new());

    for line in log_in_in_each_way(&world, &server).await {
        left.add("an answer to a login", line);
    }
    let mut client = world.session(&server).await;
    for command in [
        registration(),
        registration().replace("\"INBOX\"", "NIL"),
        registration().replace(TOKEN, &format!("{TOKEN}x")),
        "NOOP".to_owned(),
    ] {
        client.send(format!("b {command}\r\n").as_bytes()).await;
        left.add("an answer to a registration", client.until("b ").await);
    }
    client
        .send(format!("c APPEND INBOX {{{}+}}\r\n{MAIL}\r\nd LOGOUT\r\n", MAIL.len()).as_bytes())
        .await;
    client.until("d OK").await;
    if mode != "master" {
        world.push().await;
    }

    let admin = fs::read_to_string(world.file("proxy.toml")).unwrap();
    let admin = admin.split("[admin]\naddress = \"").nth(1).unwrap().split('"').next().unwrap();
    for path in ["/metrics", "/health", "/ready", "/watchers", "/subscriptions", "/nothing"] {
        left.add(path, http(admin, path).await);
    }
    for command in [
        &["check", "--login", LOGIN][..],
        &["devices", "list"],
        &["devices", "list", "--json"],
        &["watchers"],
        &["watchers", "--json"],
        &["push", LOGIN],
        &["push", LOGIN, "--explain"],
        &["push", "nobody"],
    ] {
        let said = world.command_with(command, &[("MAILCHIME_PASSWORD", PASSWORD)]).await;
        left.add(&format!("{command:?}"), format!("{}{}", said.stdout, said.stderr));
    }
    // Read again, refused by APNs, and a password that holds no more.
    server.process.signal("HUP");
    server.logged("configuration reloaded").await;
    world.apns.answer_next(1, Answer::refuse(500, "InternalServerError"));
    world.deliver();
    world.backend.set_password(LOGIN, CHANGED.as_bytes()).unwrap();
    world.backend.drop_connections();
    if mode != "master" {
        server.logged("the backend refuses the stored password; mailchime tries again").await;
    }
    left.add(
        "a refusal",
        answered(&mut world.client(&server).await, &[format!("LOGIN {LOGIN} \"{PASSWORD}\"")])
            .await,
    );

    let process = format!("/proc/{}", server.process.id());
    for file in ["environ", "cmdline"] {
        left.add(file, fs::read(format!("{process}/{file}")).unwrap());
    }
    left.add_end(&world, server).await;

    for secret in [PASSWORD, WRONG, CHANGED, BEARER, PROOF] {
        left.has_none_of(secret, |_| false);
    }
    left.has_none_of(MASTER, |place| place.ends_with("/master.password"));
    // The database has to know it; what is shown of it are 8 digits.
    let token = [&TOKEN[..12], &TOKEN[12..], &TOKEN[40..]];
    for part in token {
        left.has_none_of(part, |place| place.contains("/mailchime.db"));
    }
    for name in ["server.key", "apns.key", "mailchime.key"] {
        let Ok(key) = fs::read_to_string(world.file(name)) else { continue };
        for line in key_lines(&key) {
            left.has_none_of(&line, |place| place.ends_with(name));
        }
    }
}

#[tokio::test]
async fn no_secret_is_left_where_passwords_are_stored() {
    limited(nothing_is_left("stored")).await;
}

#[tokio::test]
async fn no_secret_is_left_where_passwords_are_in_memory_alone() {
    limited(nothing_is_left("memory")).await;
}

#[tokio::test]
async fn no_secret_is_left_where_a_master_user_watches() {
    limited(nothing_is_left("master")).await;
}

/// What a real server accepts without being shown the password; a token is as good as one.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_hides_the_password_leaves_no_secret() {
    let test = "attacks::secrets::a_login_that_hides_the_password_leaves_no_secret";
    let options = Options { tokens: true, ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    limited(async {
        let world = World::new().await;
        world.in_front_of(dovecot.plain);
        keep_everything(&world);
        let server = world.serve().await;
        // It offers what Dovecot does, once it has seen that.
        world.session(&server).await;
        let (user, token) = ((LOGIN, PASSWORD), token(LOGIN));
        let mut left = Left(Vec::new());
        let mut secrets = vec![PASSWORD.to_owned()];
        for way in ["SCRAM-SHA-256", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"].repeat(3) {
            let mut client = world.client(&server).await;
            let (answer, said) = match way {
                "SCRAM-SHA-256" => sasl::scram(&mut client, user).await,
                "CRAM-MD5" => sasl::cram(&mut client, user).await,
                _ => sasl::bearer(&mut client, way, (LOGIN, &token)).await,
            };
            assert!(answer.starts_with("in OK"), "{way}: {answer}");
            secrets.extend(said);
            client.send(format!("r {}\r\nz LOGOUT\r\n", registration()).as_bytes()).await;
            left.add(&format!("an answer to a registration by {way}"), client.until("r ").await);
            client.until("z OK").await;
        }
        left.add_end(&world, server).await;
        assert_eq!(secrets.len(), 1 + 4 * 3);
        secrets.iter().for_each(|secret| left.has_none_of(secret, |_| false));
    })
    .await;
}
