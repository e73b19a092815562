//! Writes seeds for every target from the fixtures: `seeds FIXTURES FOLDER`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mailchime::demo::dialogue::{Deed, Dialogue, Peer, Variables, What};

/// The targets look for it.
const PASSWORD: &str = "Zq7secret";

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(fixtures), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("seeds FIXTURES FOLDER"));
    };
    for file in files(&fixtures, "imap")? {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        dialogue(&folder, &name, &fs::read_to_string(&file)?)?;
    }
    for part in ["valid", "invalid"] {
        for file in files(&fixtures.join("config").join(part), "toml")? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            write(&folder, "config", &format!("{part}-{name}"), &fs::read(&file)?)?;
        }
    }
    write(&folder, "config", "manual", &fs::read(fixtures.join("../proxy.toml"))?)?;
    for (name, body) in [
        ("unregistered", &b"\x05{\"reason\":\"Unregistered\",\"timestamp\":1700000000123}"[..]),
        ("bad-token", b"\x01{\"reason\":\"BadDeviceToken\"}"),
        ("seconds", b"\x87 120 "),
    ] {
        write(&folder, "apns_answer", name, body)?;
    }
    for (name, header) in [
        ("v1", &b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 993\r\n"[..]),
        ("v1-6", b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 1 65535\r\n"),
        ("unknown", b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n"),
        ("v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\xdc\x04\x03\xe1"),
        ("v2-local", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x03abc"),
    ] {
        write(&folder, "proxy_header", name, header)?;
    }
    for (name, message) in [
        ("plain", &b"\x04\0alice\0wonder land"[..]),
        ("plain-encoded", b"\x00AGFsaWNlAHdvbmRlciBsYW5k"),
        ("login", b"\x01YWxpY2U=\nc2VjcmV0"),
        ("xoauth2", b"\x06user=alice\x01auth=Bearer ya29.x\x01\x01"),
        ("oauthbearer", b"\x07n,a=al=2Cice,\x01host=x\x01auth=Bearer ya29.x\x01\x01"),
    ] {
        write(&folder, "sasl", name, message)?;
    }
    for (name, mailbox) in [("ue", "Entw&APw-rfe"), ("pair", "&2D3eAA-"), ("text", "日本語/a&b")]
    {
        write(&folder, "mailbox", name, mailbox.as_bytes())?;
    }
    Ok(())
}

fn dialogue(folder: &Path, name: &str, file: &str) -> io::Result<()> {
    let dialogue = Dialogue::parse(file).map_err(io::Error::other)?;
    write(folder, "dialogue", name, file.as_bytes())?;
    // mailchime's tags are known where it is fuzzed, and passwords are to be told apart.
    let mut file = file.replace("wonder land", PASSWORD);
    for number in 1..20 {
        file = file.replace(&format!("${{q{number}}}"), &format!("mc7x{number}"));
    }
    let played = Dialogue::parse(&file).map_err(io::Error::other)?;
    let settings = &dialogue.settings;
    let password = settings.password.replace("wonder land", PASSWORD);
    let mut variables = Variables::of_login(&settings.user, password.as_bytes());
    let options =
        u8::from(!settings.push) | u8::from(settings.starttls) << 1 | u8::from(settings.relay) << 2;
    let (mut session, mut relay, mut login) = (vec![b'0' | options], vec![b'0'], vec![b'@']);
    let mut logged_in = false;
    for event in &played.events {
        let script = if logged_in { vec![&mut session, &mut relay] } else { vec![&mut session] };
        match &event.what {
            What::Says(peer, text) => {
                let said = text.filled(&mut variables);
                if said.len() > 10_000 {
                    return Ok(());
                }
                let side = if *peer == Peer::Client { 0xf1 } else { 0xf2 };
                for script in script {
                    script.push(side);
                    script.extend_from_slice(&said);
                }
                if *peer == Peer::Client {
                    words(folder, name, event.line, &said)?;
                } else {
                    if !logged_in {
                        login.extend_from_slice(&said);
                    }
                    logged_in |= said.windows(6).any(|part| part == b"m2 OK ");
                    write(folder, "watcher", &format!("{name}-{}", event.line), &said)?;
                }
            }
            What::Does(deed) => {
                let done = match deed {
                    Deed::Connect | Deed::Handshake | Deed::Store(_) => 0xf4,
                    Deed::Unreachable | Deed::CannotStore => 0xf5,
                    _ => continue,
                };
                script.into_iter().for_each(|script| script.push(done));
            }
            What::Hears(..) => {}
        }
    }
    for (target, script) in [("session", &session), ("recording", &session), ("relay", &relay)] {
        if script.len() > 1 {
            write(folder, target, name, script)?;
        }
    }
    write(folder, "login", name, &login)
}

/// What one side says by itself is for the readers of commands and lists.
fn words(folder: &Path, name: &str, line: usize, said: &[u8]) -> io::Result<()> {
    let name = format!("{name}-{line}");
    if let Some(at) = said.windows(18).position(|part| part == b"XAPPLEPUSHSERVICE ") {
        write(folder, "registration", &name, &said[at + 17..])?;
    }
    write(folder, "command", &name, said)
}

fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn write(folder: &Path, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = folder.join(target);
    fs::create_dir_all(&folder)?;
    // A capability list is one wherever it is said.
    if target == "watcher" && bytes.windows(10).any(|part| part.eq_ignore_ascii_case(b"CAPABILITY"))
    {
        let lists = folder.with_file_name("capability");
        fs::create_dir_all(&lists)?;
        fs::write(lists.join(name), [b"3", bytes].concat())?;
    }
    fs::write(folder.join(name), bytes)
}
