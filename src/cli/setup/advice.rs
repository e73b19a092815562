//! What to do after setup: the lines to run, and what the mail server needs.

use std::fmt::Write;

use super::{IMAP, IMAPS, MailServerKind, SetupPlan, WatchCredentials, below, page, written};
use crate::cli::holder::PortHolder;
use crate::config::BackendTls;

/// Courier's service on that port.
const COURIER_SSL: &str = "courier-imap-ssl";

/// All steps, numbered.
pub(super) fn text(plan: &SetupPlan) -> String {
    let mut steps = vec![user(plan)];
    steps.extend(unit(plan));
    if plan.credentials == WatchCredentials::Master {
        steps.push(master(plan));
    }
    let config = below(&plan.root, "etc/mailchime/proxy.toml");
    let config = config.display();
    let check = format!("mailchime check --config {config}");
    if plan.port == IMAPS {
        steps.push(take_over(plan, &check));
    } else {
        steps.push(format!("Test every part:\n\n{check}"));
        let port = plan.port;
        steps.push(
            "Start a pilot. Your server stays as it is:\n\nsystemctl enable --now mailchime"
                .to_owned(),
        );
        steps.push(format!(
            "Open port {port} in the firewall, and set it on one phone: in its mail account, Advanced, \
             Server Port {port}, with SSL. Mail must work there as before."
        ));
        steps.push(format!(
            "When the pilot is good, mailchime takes over port 993. In {config} write\n\n\
             address = \"{}:{IMAPS}\"\n\nand then:\n\n{}",
            plan.everywhere,
            change(plan, "systemctl restart mailchime")
        ));
    }
    steps.push(back(plan));
    steps.push(renewal(plan));
    steps.extend(recommendation(plan));
    let page = page(&plan.root, "docs/certificate.md");
    steps.push(format!(
        "Push to iOS Mail needs a certificate from Apple: {page}. With it, uncomment [apns] and run mailchime check \
         again."
    ));
    let mut text = "\nRun what follows as root (sudo -i).\n".to_owned();
    for (number, step) in (1..).zip(&steps) {
        let _ = write!(text, "\n{number}. ");
        for (at, line) in step.lines().enumerate() {
            // What is to be run or written stands apart.
            let indent = if at == 0 { "" } else { "   " };
            let _ = writeln!(text, "{}", format!("{indent}{line}").trim_end());
        }
    }
    text
}

/// A master user, where the server can have one and there is none yet.
fn recommendation(plan: &SetupPlan) -> Option<String> {
    let can_be = plan.server.kind.can_have_master();
    if plan.credentials == WatchCredentials::Master || !can_be {
        return None;
    }
    Some(format!(
        "Recommended before many users come: a master user of the server in place of their passwords, which then \
         are not on this machine, and no change of one stops anything. It is a change to the server, and its \
         password opens all mail: {}. See what would be written:\n\n\
         mailchime setup --credentials master --dry-run",
        page(&plan.root, "docs/book/master-user.md")
    ))
}

fn user(plan: &SetupPlan) -> String {
    let path = |path: &str| below(&plan.root, path).display().to_string();
    let master = match plan.credentials {
        WatchCredentials::Stored => String::new(),
        WatchCredentials::Master => {
            format!("\nchown mailchime {}", path("etc/mailchime/master.password"))
        }
    };
    let users = std::fs::read_to_string(below(&plan.root, "etc/passwd")).unwrap_or_default();
    let (make, useradd) = match users.lines().any(|line| line.starts_with("mailchime:")) {
        true => ("Give the user mailchime", String::new()),
        false => (
            "Make the user, and give it",
            format!(
                "useradd --system --home-dir {state} --shell /usr/sbin/nologin mailchime\n",
                state = path("var/lib/mailchime")
            ),
        ),
    };
    format!(
        "{make} the files:\n\n\
         {useradd}install -d -m 700 -o mailchime -g mailchime {state}\n\
         chgrp -R mailchime {folder}{master}",
        state = path("var/lib/mailchime"),
        folder = path("etc/mailchime"),
    )
}

/// Where units are, below the root: a package's, and those of the administrator.
const UNITS: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// What brings the unit, where no package has: from the folder of the sources or of a release's archive.
fn unit(plan: &SetupPlan) -> Option<String> {
    let path = |path: &str| below(&plan.root, path);
    if UNITS.iter().any(|folder| path(folder).join("mailchime.service").exists()) {
        return None;
    }
    // The unit starts the program that it finds there.
    let is_installed =
        ["usr/local/bin/mailchime", "usr/bin/mailchime"].map(path).iter().any(|it| it.exists());
    let program = match std::env::current_exe() {
        Ok(program) if !is_installed => format!(
            "install -m 755 {} {}\n",
            program.display(),
            path("usr/local/bin/mailchime").display()
        ),
        _ => String::new(),
    };
    Some(format!(
        "Give systemd the unit, which lies in the folder of the sources and in that of a release's archive. \
         Run these there:\n\n\
         {program}install -m 644 contrib/systemd/mailchime.service {}\n\
         systemctl daemon-reload",
        path(UNITS[0]).join("mailchime.service").display()
    ))
}

/// The files of Dovecot with the master user, and with what names it.
const MASTER_FILE: &str = "/etc/dovecot/mailchime.master";
const PASSDB_FILE: &str = "/etc/dovecot/conf.d/10-auth.conf";

fn master(plan: &SetupPlan) -> String {
    let password = below(&plan.root, "etc/mailchime/master.password");
    let password = password.display();
    match plan.server.kind {
        MailServerKind::Dovecot23 | MailServerKind::Dovecot24 | MailServerKind::DovecotUnknown => {
            let before = "passdb {\n  driver = passwd-file\n  args = /etc/dovecot/mailchime.master\n  \
                          master = yes\n}";
            let since = "passdb mailchime {\n  driver = passwd-file\n  \
                         passwd_file_path = /etc/dovecot/mailchime.master\n  master = yes\n}";
            let block = by_version(plan.server.kind, before, since);
            // The fields between are those of passwd(5).
            let (nets, from) = match (plan.server.is_here(), &plan.server.container) {
                // It is reached by either address of loopback.
                (true, None) => {
                    ("::::::allow_nets=127.0.0.0/8,::1/128", ", from this machine alone")
                }
                (true, Some(_)) => (
                    "::::::allow_nets=192.0.2.1/32",
                    ", from the address that follows allow_nets= alone: write there the gateway's of the \
                     container's network (`docker network inspect` names it). Paths of /etc/dovecot are those in \
                     the container",
                ),
                (false, _) => (
                    "::::::allow_nets=192.0.2.1/32",
                    ", from the address that follows allow_nets= alone: write \
                           there that of this machine",
                ),
            };
            // The password itself stays in mailchime's file, and is no argument of a program.
            let file = match plan.server.is_here() && plan.server.container.is_none() {
                true => format!(
                    "(umask 077; printf 'mailchime:%s{nets}\\n' \"$(cat {password} {password} | \
                     doveadm pw -s SHA512-CRYPT)\" > {MASTER_FILE})\n\
                     chown dovecot {MASTER_FILE}"
                ),
                false => format!(
                    "printf 'mailchime:{{SHA512-CRYPT}}%s{nets}\\n' \"$(openssl passwd -6 -stdin < {password})\"\n\n\
                     Write the line that this prints to {MASTER_FILE} there, which Dovecot alone may read."
                ),
            };
            format!(
                "Make the master user in Dovecot. It may log in as everybody{from}:\n\n\
                 {file}\n\n\
                 In {PASSDB_FILE}, before the other passdb:\n\n{block}\n\n\
                 {reload}",
                reload = match plan.server.container {
                    Some(_) => "# and restart the container",
                    None => "systemctl reload dovecot",
                }
            )
        }
        MailServerKind::Cyrus => format!(
            "Make the master user in Cyrus. It may log in as everybody. In /etc/imapd.conf:\n\n\
             proxyservers: mailchime\n\n\
             saslpasswd2 -p -c mailchime < {password}\n\
             systemctl restart cyrus-imapd"
        ),
        MailServerKind::Courier | MailServerKind::Other => format!(
            "Make a master user with the name mailchime and the password in {password}, who may log in as \
             everybody by SASL PLAIN with the user as authorization identity; or write another form to \
             [backend] login_template."
        ),
    }
}

/// Without a pilot. mailchime can be tested once its port is free.
fn take_over(plan: &SetupPlan, check: &str) -> String {
    let begin = format!("{check}\nsystemctl enable mailchime\nsystemctl restart mailchime");
    format!(
        "{}, test every part, and start mailchime there.\n\n{}",
        match plan.server.is_here() {
            true => "Have your server give up port 993",
            false => "Take port 993",
        },
        change(plan, &begin)
    )
}

/// What the server needs so that mailchime has port 993, and what mailchime begins with.
fn change(plan: &SetupPlan, begin: &str) -> String {
    let service = plan.server.service();
    if !plan.server.is_here() {
        let own = format!(
            "Your server is on another machine and keeps its ports.\n\n{}\n\nHave the name that phones use lead to \
             this machine.",
            limits_elsewhere(plan.server.kind)
        );
        return match give_up(plan).as_str() {
            "" => format!("{own}\n\n{begin}"),
            give_up => format!("{own} On this machine, {give_up}start mailchime:\n\n{begin}"),
        };
    }
    if let Some(publisher) = &plan.server.container {
        return container(plan, publisher, begin);
    }
    let config = below(&plan.root, "etc/mailchime/proxy.toml");
    let behind = plan.server.behind();
    let (address, port) = (behind.listens_at(), behind.port);
    let server = match plan.server.kind {
        kind @ (MailServerKind::Dovecot23
        | MailServerKind::Dovecot24
        | MailServerKind::DovecotUnknown) => dovecot(kind, address, port, &behind.tls),
        MailServerKind::Cyrus => {
            let host = behind.listens_in_brackets();
            let port = if port == IMAP { "imap".to_owned() } else { port.to_string() };
            format!(
                "in the block SERVICES of /etc/cyrus.conf, have imap listen on this machine alone, and take imaps \
             out:\n\n\
             imap cmd=\"imapd -U 30\" listen=\"{host}:{port}\" prefork=0 maxchild=100\n\n\
             maxchild bounds all sessions and all watched accounts together, so write there more than both \
             are. In /etc/imapd.conf, for logins from mailchime:\n\n\
             allowplaintext: yes"
            )
        }
        MailServerKind::Courier => {
            // systemd's unit of the package starts it whatever IMAPDSSLSTART says.
            format!(
                "in /etc/courier/imapd:\n\nADDRESS={address}\nPORT={port}\n{COURIER_LIMITS}\n\n\
                 All connections come from this machine then, and Debian lets one address have 20: write more \
                 than all sessions and all watched accounts together. Its server of port 993 is a service of its own:\n\n\
                 systemctl disable --now {COURIER_SSL}"
            )
        }
        MailServerKind::Other => {
            format!(
                "have your server listen for IMAP on {address}, port {port}, and no longer on port {IMAPS}."
            )
        }
    };
    let backend = match plan.server.tls {
        BackendTls::Implicit(_) => {
            let lines = written::backend(&behind, plan.credentials);
            format!(
                "\n\nIn {}, in place of the lines of [backend], since your server then listens on port {port} \
                 alone, without TLS:\n\n{}",
                config.display(),
                lines.trim_end()
            )
        }
        _ => String::new(),
    };
    let starttls = format!(
        "\n\nPort {port} is then closed to other machines. If clients use it with STARTTLS, add this to {}, with the \
         address of this machine that they use, for {address} is your server's:\n\n\
         [[listener]]\naddress = \"192.0.2.1:{port}\"\ntls = \"starttls\"",
        config.display()
    );
    format!("{}{server}{backend}{starttls}\n\nsystemctl restart {service}\n{begin}", give_up(plan))
}

/// How many connections Courier takes: from one address, and altogether.
const COURIER_LIMITS: &str = "MAXPERIP=1000\nMAXDAEMONS=1000";

/// What Dovecot counts once it believes the addresses of clients, and what it lets run.
fn limits_of_dovecot(has_tls: bool) -> String {
    let (processes, login) = match has_tls {
        false => ("A connection takes a process of imap (1024 at most)", ""),
        // Of a login, which stays where it ends TLS. auth and anvil take a connection of each of them.
        true => (
            "A connection takes a process of imap (1024 at most) and, with TLS, one of imap-login (100 at most)",
            "\nservice imap-login {\n  process_limit = 4000\n}\ndefault_client_limit = 5000",
        ),
    };
    format!(
        "Dovecot then counts mail_max_userip_connections by the addresses of clients, as before. For each watched \
         account mailchime holds one connection more, from its own address. {processes}. If sessions and \
         watched accounts together can be more, write numbers above that to conf.d/10-master.conf:\n\n\
         service imap {{\n  process_limit = 4000\n}}{login}"
    )
}

/// What a server on another machine needs, for which all clients come from one address now.
fn limits_elsewhere(kind: MailServerKind) -> String {
    match kind {
        MailServerKind::Dovecot23
        | MailServerKind::Dovecot24
        | MailServerKind::DovecotUnknown => {
            format!(
                "For Dovecot all clients come from this machine then. So that it believes mailchime their addresses \
                 (send_id), write in its dovecot.conf, with the address of this machine:\n\n\
                 login_trusted_networks = 192.0.2.1/32\n\n{}",
                limits_of_dovecot(true)
            )
        }
        MailServerKind::Courier => format!(
            "For Courier all clients come from this machine then, and Debian lets one address have 20 connections. \
             Write in its /etc/courier/imapd more than all sessions and all watched accounts together:\n\n\
             {COURIER_LIMITS}"
        ),
        MailServerKind::Cyrus => {
            "maxchild of the service in its /etc/cyrus.conf bounds all sessions and all watched accounts together: \
             see that it is more than both are."
                .to_owned()
        }
        MailServerKind::Other => {
            "For your server all clients come from this machine then: see how many connections it lets one address \
             have."
                .to_owned()
        }
    }
}

/// Of a server in a container, whose own configuration has nothing to do with the ports of this machine.
fn container(plan: &SetupPlan, publisher: &str, begin: &str) -> String {
    let page = page(&plan.root, "docs/book/containers.md");
    let config = below(&plan.root, "etc/mailchime/proxy.toml");
    let host = plan.server.listens_in_brackets();
    // What the container itself has is the usual port as a rule, whatever it is published as.
    let inside = match plan.server.tls {
        BackendTls::Implicit(_) => IMAPS,
        _ => IMAP,
    };
    let (published, backend) = match plan.server.is_imaps {
        true => (
            format!("- \"{host}:9993:{inside}\""),
            format!(
                "\n\nIn {}, in place of the address of [backend]:\n\naddress = \"{host}:9993\"",
                config.display()
            ),
        ),
        false => (format!("- \"{host}:{}:{inside}\"", plan.server.port), String::new()),
    };
    format!(
        "{}change what is published of your server's container ({publisher} holds its ports), and nothing in the \
         server. In compose.yaml, in place of the lines that end in :993 and :143:\n\n\
         ports:\n  {published}\n\n\
         {page} has docker-mailserver, mailcow and Mailu, and how the server learns the clients' addresses.{backend}\n\n\
         docker compose up -d\n{begin}",
        give_up(plan)
    )
}

/// What another program than the server is to do, where it holds the port; the text goes on behind it.
fn give_up(plan: &SetupPlan) -> String {
    let Some(holder) = &plan.other else { return String::new() };
    format!(
        "have {}, which is not your IMAP server, give up port {IMAPS} in its own configuration:\n\n{}\n\nThen ",
        holder.program,
        restart(holder)
    )
}

fn restart(PortHolder { program, unit }: &PortHolder) -> String {
    match unit {
        Some(unit) => format!("systemctl restart {unit}"),
        None => format!("# and restart {program}"),
    }
}

/// The way back.
fn back(plan: &SetupPlan) -> String {
    format!("{}{}", back_to_server(plan), back_from_master(plan))
}

/// What is left of a master user, who may log in as everybody.
fn back_from_master(plan: &SetupPlan) -> String {
    if plan.credentials != WatchCredentials::Master {
        return String::new();
    }
    let (lines, command) = match plan.server.kind {
        MailServerKind::Dovecot23 | MailServerKind::Dovecot24 | MailServerKind::DovecotUnknown => (
            format!("in {PASSDB_FILE} the passdb that names {MASTER_FILE}"),
            format!("rm {MASTER_FILE}"),
        ),
        MailServerKind::Cyrus => (
            "in /etc/imapd.conf the line proxyservers: mailchime".to_owned(),
            "saslpasswd2 -d mailchime".to_owned(),
        ),
        MailServerKind::Courier | MailServerKind::Other => return String::new(),
    };
    let restart = match plan.server.container {
        Some(_) => "# and restart the container".to_owned(),
        None => format!("systemctl restart {}", plan.server.service()),
    };
    let place = match plan.server.is_here() && plan.server.container.is_none() {
        true => "",
        false => " there",
    };
    format!(
        "\n\nThe master user may still log in as everybody: remove {lines}, and run{place}\n\n{command}\n{restart}"
    )
}

/// mailchime gives up the port before the server is to have it.
fn back_to_server(plan: &SetupPlan) -> String {
    let service = plan.server.service();
    if plan.server.container.is_some() {
        return "To go back: take the change to compose.yaml back, and run\n\n\
                systemctl disable --now mailchime\ndocker compose up -d"
            .to_owned();
    }
    if !plan.server.is_here() {
        let (also, other) = match &plan.other {
            Some(holder) => (
                format!(", take the change to {} back", holder.program),
                format!("\n{}", restart(holder)),
            ),
            None => Default::default(),
        };
        return format!(
            "To go back: have the name lead to your server again{also}, and run\n\n\
             systemctl disable --now mailchime{other}"
        );
    }
    let ssl = match plan.server.kind {
        MailServerKind::Courier => format!("\nsystemctl enable --now {COURIER_SSL}"),
        _ => String::new(),
    };
    let (also, other) = match &plan.other {
        Some(holder) => {
            (format!(" and that to {}", holder.program), format!("\n{}", restart(holder)))
        }
        None => Default::default(),
    };
    format!(
        "To go back: take the change to {service}{also} back, and run\n\n\
         systemctl disable --now mailchime\nsystemctl restart {service}{ssl}{other}"
    )
}

/// A block of Dovecot's configuration as it was up to 2.3 and as it is since 2.4, or both where the version is unknown.
fn by_version(kind: MailServerKind, before: &str, since: &str) -> String {
    match kind {
        MailServerKind::Dovecot24 => since.to_owned(),
        MailServerKind::DovecotUnknown => format!(
            "The version of Dovecot is not known here; `dovecot --version` says it. Up to Dovecot 2.3:\n\n{before}\n\n\
             Since Dovecot 2.4, which does not start with the one above:\n\n{since}"
        ),
        _ => before.to_owned(),
    }
}

/// Dovecot 2.4 has changed the word for an address.
fn dovecot(kind: MailServerKind, address: &str, port: u16, tls: &BackendTls) -> String {
    let block = |listen: &str| {
        format!(
            "service imap-login {{\n  inet_listener imap {{\n    {listen} = {address}\n    port = {port}\n  }}\n  \
             inet_listener imaps {{\n    port = 0\n  }}\n}}"
        )
    };
    let block = by_version(kind, &block("address"), &block("listen"));
    format!(
        "in /etc/dovecot/conf.d/10-master.conf:\n\n{block}\n\n\
         and in /etc/dovecot/dovecot.conf, so that Dovecot believes mailchime the addresses of clients:\n\n\
         login_trusted_networks = 127.0.0.1/32 ::1/128\n\n{}",
        limits_of_dovecot(*tls != BackendTls::None)
    )
}

fn renewal(plan: &SetupPlan) -> String {
    if let Some(name) = plan.certificate.lineage(&plan.root) {
        return renewal_by_certbot(plan, name);
    }
    let folder = below(&plan.root, "etc/mailchime");
    let folder = folder.display();
    let page = page(&plan.root, "docs/packages.md");
    let (certificate, key) =
        (plan.certificate.certificate.display(), plan.certificate.private_key.display());
    format!(
        "After each renewal of the certificate run these, or have a timer do so ({page}); mailchime takes the new one \
         by itself:\n\n\
         install -m 640 -g mailchime {certificate} {folder}/server.pem\n\
         install -m 640 -g mailchime {key} {folder}/server.key"
    )
}

/// certbot runs what is executable in that folder, for each certificate that it renews; the hook takes the one that it
/// has the name of.
fn renewal_by_certbot(plan: &SetupPlan, name: &str) -> String {
    let hooks = below(&plan.root, "etc/letsencrypt/renewal-hooks/deploy");
    let hooks = hooks.display();
    let packaged = below(&plan.root, "usr/share/doc/mailchime/examples/certbot/mailchime");
    let (hook, place) = match packaged.exists() {
        true => (packaged.display().to_string(), ""),
        false => (
            "contrib/certbot/mailchime".to_owned(),
            ", in the folder of the sources or in that of a release's archive",
        ),
    };
    // The name is part of a script.
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
    let (choice, also) = match name.chars().all(is_plain) {
        true => {
            let choice = format!("\nsed -i 's/^LINEAGE=.*/LINEAGE={name}/' {hooks}/mailchime");
            (choice, "")
        }
        false => (String::new(), " In the hook, write the certificate's name to LINEAGE."),
    };
    format!(
        "Have certbot copy the certificate after each renewal. Run this once{place}; mailchime takes the new one by \
         itself.{also}\n\n\
         install -m 755 {hook} {hooks}/{choice}"
    )
}

#[cfg(test)]
mod tests;
