//! Logins that do not show the password, as clients do them. Each returns the answer, and what was
//! said to the server alone.

use std::io::Write;
use std::process::{Command, Stdio};

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::line::Client;
use crate::support::servers::User;

/// SCRAM-SHA-256 (RFC 5802 section 3, RFC 7677).
pub(crate) async fn scram(
    client: &mut Client,
    (name, password): User<'_>,
) -> (String, Vec<String>) {
    let first = format!("n={name},r=fyko+d2lbbFgONRv9qkxdawL");
    let encoded = STANDARD.encode(format!("n,,{first}"));
    client.send(format!("in AUTHENTICATE SCRAM-SHA-256 {encoded}\r\n").as_bytes()).await;
    let challenge = challenge(client).await;
    let field = |name: &str| challenge.split(',').find_map(|it| it.strip_prefix(name)).unwrap();
    let (salt, rounds) = (STANDARD.decode(field("s=")).unwrap(), field("i=").parse().unwrap());
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
    let sign = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
    };
    let key = sign(&salted, "Client Key");
    let last = format!("c=biws,r={}", field("r="));
    let stored = digest::digest(&digest::SHA256, &key);
    let signature = sign(stored.as_ref(), &format!("{first},{challenge},{last}"));
    let proof: Vec<u8> = key.iter().zip(signature).map(|(key, sign)| key ^ sign).collect();
    let proof = STANDARD.encode(proof);
    let answer = last_answer(client, &format!("{last},p={proof}")).await;
    (answer, vec![proof])
}

/// CRAM-MD5 (RFC 2195).
pub(crate) async fn cram(client: &mut Client, (name, password): User<'_>) -> (String, Vec<String>) {
    client.send(b"in AUTHENTICATE CRAM-MD5\r\n").await;
    let challenge = challenge(client).await;
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-md5", "-r", "-hmac", password]);
    let mut openssl = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    openssl.stdin.take().unwrap().write_all(challenge.as_bytes()).unwrap();
    let output = openssl.wait_with_output().unwrap();
    let digest = String::from_utf8(output.stdout).unwrap();
    let (digest, _) = digest.split_once(' ').unwrap();
    let answer = last_answer(client, &format!("{name} {digest}")).await;
    (answer, vec![digest.to_owned()])
}

/// XOAUTH2, or OAUTHBEARER (RFC 7628 section 3.1), with its token in the command.
pub(crate) async fn bearer(
    client: &mut Client,
    mechanism: &str,
    (name, token): User<'_>,
) -> (String, Vec<String>) {
    let response = match mechanism {
        "XOAUTH2" => format!("user={name}\x01auth=Bearer {token}\x01\x01"),
        _ => format!("n,a={name},\x01auth=Bearer {token}\x01\x01"),
    };
    let encoded = STANDARD.encode(response);
    client.send(format!("in AUTHENTICATE {mechanism} {encoded}\r\n").as_bytes()).await;
    (client.until("in ").await, vec![token.to_owned()])
}

async fn challenge(client: &mut Client) -> String {
    let challenge = client.until("+ ").await;
    String::from_utf8(STANDARD.decode(&challenge[2..]).unwrap()).unwrap()
}

/// The answer to the response that ends a login, after which the server may still prove itself.
async fn last_answer(client: &mut Client, response: &str) -> String {
    client.send(format!("{}\r\n", STANDARD.encode(response)).as_bytes()).await;
    let answer = client.line().await;
    if !answer.starts_with("+ ") {
        return answer;
    }
    client.send(b"\r\n").await;
    client.until("in ").await
}
