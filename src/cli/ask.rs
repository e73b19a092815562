//! Asking the mailchime that runs, at the address of `[admin]`, a port or a Unix socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::either::Either;

use super::{CommandFailure, Configured, configuration, runtime};
use crate::config::AdminAddress;

/// For the connection.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// For the answer: longer than mailchime itself takes to give up.
const ANSWER_TIME: Duration = Duration::from_secs(100);

/// For the answer whether it answers at all. With the time for the connection it is less than the ten seconds for which
/// what supervises a container waits (Containerfile).
const ALIVE_TIME: Duration = Duration::from_secs(3);

/// The status of a hundred thousand accounts is a tenth of this.
const ANSWER_SIZE: usize = 256 * 1024 * 1024;

/// What the running mailchime answers to `path` with these parameters.
pub(super) fn ask(
    configured: &Configured,
    method: Method,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<Value, CommandFailure> {
    ask_within(ANSWER_TIME, configured, method, path, parameters)
}

/// An error where the running mailchime does not answer within some seconds.
pub(super) fn ask_whether_it_answers(configured: &Configured) -> Result<(), CommandFailure> {
    ask_within(ALIVE_TIME, configured, Method::GET, "/healthz", &[]).map(drop)
}

fn ask_within(
    answer_time: Duration,
    configured: &Configured,
    method: Method,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<Value, CommandFailure> {
    let config = configuration(configured)?;
    let Some(address) = config.admin.address.map(reachable) else {
        return Err(CommandFailure::Usage(format!(
            "{}: [admin] address: not set, so a running mailchime cannot be asked; set it, to \
             \"127.0.0.1:8143\" for example, and start mailchime anew",
            configured.config.display()
        )));
    };
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters);
    let target = format!("{path}?{}", query.finish());
    let address = &address;
    let asking = async {
        let stream = match timeout(CONNECT_TIME, connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(silent(address, &error.to_string())),
            Err(_) => return Err(silent(address, "no connection in time")),
        };
        let host = match address {
            AdminAddress::Tcp(address) => address.to_string(),
            AdminAddress::Unix { .. } => "localhost".to_owned(),
        };
        let answer = timeout(answer_time, exchange(stream, host, method, &target)).await;
        let (status, body) = match answer {
            Ok(answer) => answer.map_err(|why| silent(address, &why))?,
            Err(_) => return Err(silent(address, "no answer in time")),
        };
        let value: Value = serde_json::from_slice(&body)
            .map_err(|_| silent(address, "what answers there is not mailchime"))?;
        match (status, value["error"].as_str()) {
            (StatusCode::OK, _) => Ok(value),
            // /readyz: a part does not work.
            (StatusCode::SERVICE_UNAVAILABLE, None) if value["parts"].is_object() => Ok(value),
            (_, Some(error)) => Err(CommandFailure::Failed(error.to_owned())),
            (status, None) => Err(silent(address, &format!("it answered {status}"))),
        }
    };
    runtime()?.block_on(asking)
}

fn silent(address: &AdminAddress, why: &str) -> CommandFailure {
    CommandFailure::Failed(format!(
        "[admin] address {address}: {why}; is mailchime running, with this configuration?"
    ))
}

/// Listening to every address of the machine is heard on its loopback one.
fn reachable(mut address: AdminAddress) -> AdminAddress {
    if let AdminAddress::Tcp(address) = &mut address
        && address.ip().is_unspecified()
    {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

async fn connect(address: &AdminAddress) -> io::Result<Either<TcpStream, UnixStream>> {
    match address {
        AdminAddress::Tcp(address) => TcpStream::connect(address).await.map(Either::Left),
        AdminAddress::Unix { path, .. } => UnixStream::connect(path).await.map(Either::Right),
    }
}

async fn exchange(
    stream: Either<TcpStream, UnixStream>,
    host: String,
    method: Method,
    target: &str,
) -> Result<(StatusCode, Bytes), String> {
    let failed = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Its errors come back with the request.
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_SIZE).collect().await;
    connection.abort();
    Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
}
