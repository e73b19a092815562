//! Which program listens at a port of this machine, by what Linux tells of its sockets and processes (proc(5)).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::imap::responses::printable;

/// The state of a socket that listens, in /proc/net/tcp.
const LISTENS: &str = "0A";

/// That of a socket that takes datagrams from everybody, in /proc/net/udp.
const TAKES: &str = "07";

/// Where Linux tells of those.
const DATAGRAMS: [&str; 2] = ["/proc/net/udp", "/proc/net/udp6"];

/// A program that listens. Of programs of other users root alone learns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct PortHolder {
    pub(in crate::cli) program: String,
    /// Its unit of systemd, for `systemctl`.
    pub(in crate::cli) unit: Option<String>,
}

impl PortHolder {
    /// One that this user cannot see.
    pub(in crate::cli) fn unknown() -> Self {
        Self { program: "another program (`ss -ltnp` names it to root)".to_owned(), unit: None }
    }
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unit {
            Some(unit) => write!(f, "{} ({unit})", self.program),
            None => f.write_str(&self.program),
        }
    }
}

/// The program at this address, as far as this user can see it.
pub(in crate::cli) fn of(host: IpAddr, port: u16) -> Option<PortHolder> {
    of_tables(["/proc/net/tcp", "/proc/net/tcp6"], LISTENS, host, port)
}

/// The program that takes the datagrams of this address.
pub(in crate::cli) fn of_datagrams(host: IpAddr, port: u16) -> Option<PortHolder> {
    of_tables(DATAGRAMS, TAKES, host, port)
}

/// Whether somebody does, which everybody may know.
pub(in crate::cli) fn takes_datagrams(host: IpAddr, port: u16) -> bool {
    let is_taken = |table: &str| !sockets(table, TAKES, host, port).is_empty();
    DATAGRAMS.iter().any(|table| fs::read_to_string(table).is_ok_and(|table| is_taken(&table)))
}

/// The program of a process, and its unit.
pub(in crate::cli) fn of_process(pid: u32) -> Option<PortHolder> {
    let folder = Path::new("/proc").join(pid.to_string());
    let program = fs::read(folder.join("comm")).ok()?;
    let unit = fs::read_to_string(folder.join("cgroup")).ok().and_then(|text| unit(&text));
    Some(PortHolder { program: printable(program.trim_ascii()), unit })
}

fn of_tables(tables: [&str; 2], state: &str, host: IpAddr, port: u16) -> Option<PortHolder> {
    let tables = tables.map(fs::read_to_string);
    let listening = |table: &String| sockets(table, state, host, port);
    let sockets: Vec<_> = tables.iter().flatten().flat_map(listening).collect();
    let mut holders = BTreeMap::new();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let mut links = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        if links.any(|link| link.to_str().is_some_and(|link| sockets.iter().any(|it| it == link))) {
            holders.insert(pid, parent(&process.path()));
        }
    }
    // A server shares the socket with its children, and systemd with those that it starts for it.
    let is_first = |parent: &u32| *parent == 1 || !holders.contains_key(parent);
    let mut first = holders.iter().filter(|(_, parent)| is_first(parent)).map(|(pid, _)| *pid);
    let pid = first.clone().find(|pid| *pid != 1).or_else(|| first.next())?;
    of_process(pid)
}

/// The sockets that are in this state there, as the links to open files name them. `table` has lines such as
/// `0: 0100007F:03E1 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 …`.
fn sockets(table: &str, state: &str, host: IpAddr, port: u16) -> Vec<String> {
    let socket = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (address, at) = fields.get(1)?.split_once(':')?;
        let address = address_of(address)?;
        let is_there = fields.get(3) == Some(&state)
            && u16::from_str_radix(at, 16) == Ok(port)
            && (address.is_unspecified() || address == host);
        is_there.then(|| Some(format!("socket:[{}]", fields.get(9)?)))?
    };
    table.lines().filter_map(socket).collect()
}

/// Groups of 32 bits, each as this processor has it in memory.
fn address_of(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..hex.len()).step_by(8) {
        let group = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        bytes.extend(group.to_ne_bytes());
    }
    let four = <[u8; 4]>::try_from(&*bytes).map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)));
    let sixteen =
        || <[u8; 16]>::try_from(&*bytes).map(|bytes| Ipv6Addr::from(bytes).to_canonical());
    four.or_else(|_| sixteen()).ok()
}

/// 0 where it is not known.
fn parent(process: &Path) -> u32 {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// The unit in the path of a group of processes, such as `0::/system.slice/nginx.service`. It goes into a line for a
/// shell.
fn unit(groups: &str) -> Option<String> {
    let is_plain = |unit: &str| {
        unit.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"@._-".contains(&byte))
    };
    let units = groups.lines().filter_map(|line| line.rsplit('/').next());
    units.filter(|unit| unit.ends_with(".service") && is_plain(unit)).map(str::to_owned).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_table_of_sockets_says_who_listens_where() {
        let hex = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let line = |address: &str, state: &str, inode: u32| {
            format!(" 0: {address}:03E1 00000000:0000 {state} 0:0 00:0 0 0 0 {inode} 1 0 100\n")
        };
        let mapped = format!("{}{}{}", "0".repeat(16), hex([0, 0, 255, 255]), hex([127, 0, 0, 1]));
        let table = [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt uid\n"
                .to_owned(),
            line(&hex([127, 0, 0, 1]), LISTENS, 1),
            line(&hex([192, 0, 2, 1]), LISTENS, 2),
            line(&hex([127, 0, 0, 1]), "01", 3),
            line(&hex([0; 4]), LISTENS, 4),
            line(&"0".repeat(32), LISTENS, 5),
            line(&mapped, LISTENS, 6),
            line("é", LISTENS, 7),
        ]
        .concat();
        let expected = [1, 4, 5, 6].map(|inode| format!("socket:[{inode}]"));
        assert_eq!(sockets(&table, LISTENS, HERE, 993), expected);
        assert_eq!(sockets(&table, LISTENS, HERE, 143), [""; 0]);
    }

    #[test]
    fn this_program_is_found_and_nobody_where_nobody_listens() {
        let listener = std::net::TcpListener::bind((HERE, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = of(HERE, port).unwrap();
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(found.program, own.trim());
        drop(listener);
        assert_eq!(of(HERE, port), None);
        let datagrams = std::net::UdpSocket::bind((HERE, 0)).unwrap();
        let port = datagrams.local_addr().unwrap().port();
        assert_eq!(of_datagrams(HERE, port).unwrap().program, own.trim());
        drop(datagrams);
        assert_eq!(of_datagrams(HERE, port), None);
    }

    #[test]
    fn a_unit_is_the_end_of_the_path_of_its_group() {
        assert_eq!(unit("0::/system.slice/nginx.service\n").as_deref(), Some("nginx.service"));
        for none in ["0::/\n", "0::/user.slice/session-1.scope\n", "0::/a;b.service\n", ""] {
            assert_eq!(unit(none), None, "{none}");
        }
    }
}
