//! The image and what runs it: what is in it, and that the files for compose, Kubernetes and the workflows keep to
//! the schemas of these.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::podman::Podman;
use super::{ends, file, program, python, succeeds, text};
use crate::support::servers::dovecot24::doveconf;

const SCHEMAS: &str = "check-jsonschema-0.39.0";
const KUBERNETES: &str = "kubernetes-validate-1.37.0";
const COMPOSE: &str = "contrib/container/compose.yaml";

/// The same for a container with the network of the host.
const HOST: &str = "contrib/container/host.yaml";

/// The folders of the image, from a small program in place of mailchime.
#[test]
fn the_image_has_the_program_the_authorities_and_no_more() {
    let test = "contrib::container::the_image_has_the_program_the_authorities_and_no_more";
    let Some(mut id) = program(test, "id", "id") else { return };
    if succeeds(id.arg("-u")).trim() != "0" {
        return crate::support::skip::report(test, "only root can give folders to another user");
    }
    if !Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
        return crate::support::skip::report(test, "ca-certificates is not on this machine");
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("small.c");
    let small = "#include <stdio.h>\n#include <unistd.h>\nint main(void) { FILE *state = fopen(\"/var/lib/mailchime/x\", \
                 \"w\"); printf(\"%d %d %d\\n\", getuid(), state != 0, fopen(\"/etc/x\", \"w\") != 0); return 0; }\n";
    fs::write(&source, small).unwrap();
    let program = folder.path().join("small");
    succeeds(Command::new("cc").arg("-static").arg(&source).arg("-o").arg(&program));
    let root = folder.path().join("root");
    let rootfs = || Command::new(file("contrib/container/rootfs.sh"));
    succeeds(rootfs().arg(&program).arg(&root));

    let found = succeeds(Command::new("find").arg(".").args(["-type", "f"]).current_dir(&root));
    let mut found: Vec<_> = found.lines().collect();
    found.sort_unstable();
    let expected = [
        "./etc/group",
        "./etc/nsswitch.conf",
        "./etc/passwd",
        "./etc/ssl/certs/ca-certificates.crt",
        "./usr/bin/mailchime",
    ];
    assert_eq!(found, expected);
    let state = fs::metadata(root.join("var/lib/mailchime")).unwrap();
    assert_eq!((state.uid(), state.permissions().mode() & 0o7777), (65532, 0o700));
    // Its user writes to the state and nowhere else.
    let mut inside = Command::new("chroot");
    inside.args(["--userspec=65532:65532"]).arg(&root).arg("/usr/bin/mailchime");
    assert_eq!(succeeds(&mut inside), "65532 1 0\n");

    let (succeeded, said) = ends(rootfs().arg("/bin/true").arg(folder.path().join("other")));
    assert!(!succeeded && said.contains("is not static"), "{said}");
}

#[test]
fn the_image_runs_as_nobody_who_is_root_and_knows_its_health() {
    let image = text("contrib/container/Containerfile");
    let (_, last) = image.rsplit_once("\nFROM ").unwrap();
    assert!(last.starts_with("scratch\n") && last.contains("\nUSER 65532:65532\n"), "{last}");
    assert!(!last.contains("\nRUN "), "there is no shell: {last}");
    let health = last.split("HEALTHCHECK").nth(1).unwrap().split("CMD ").nth(1).unwrap();
    let command: Vec<String> = serde_json::from_str(health.lines().next().unwrap()).unwrap();
    assert_eq!(command[1..], ["health", "--config", "/etc/mailchime/proxy.toml"]);
    // A default would be the processor of each platform.
    assert!(image.contains("\nARG TARGETARCH\n"));
    // The image is run before it is published.
    let release = text(".github/workflows/release.yml");
    let (before, _) = release.rsplit_once("push: true").unwrap();
    assert!(before.contains("load: true") && before.contains("run: contrib/container/trial.sh\n"));
    // The tools of the image are those of the release.
    for tools in ["ziglang==", "cargo-zigbuild=="] {
        let version = |text: &str| {
            text.split(tools).nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
        };
        let builder = text("contrib/release/build.sh");
        let stated = builder.split(tools).nth(1).unwrap();
        assert_eq!(version(&image), version(&release), "{tools}");
        assert!(stated.starts_with(&version(&image)), "{tools}{stated}");
    }
}

/// build.sh refuses a program that names the folder of its sources. Files of the program are named in it, such as
/// `src/watch/source/imap.rs`: none may look like that folder.
#[test]
fn no_file_of_the_program_looks_like_the_folder_that_the_image_is_built_in() {
    let image = text("contrib/container/Containerfile");
    let folder = image.lines().find_map(|line| line.strip_prefix("WORKDIR ")).unwrap();
    let mut find = Command::new("find");
    let files = succeeds(find.args(["src", "-name", "*.rs"]).current_dir(file("")));
    assert!(files.contains("src/watch/"), "{files}");
    let alike = |line: &&str| line.contains(&format!("{folder}/"));
    assert_eq!(files.lines().filter(alike).collect::<Vec<_>>(), [""; 0]);
    let texts = files.lines().filter(|name| alike(&text(name).as_str()));
    assert_eq!(texts.collect::<Vec<_>>(), [""; 0]);
}

/// The last stage of the file, with a small program in place of mailchime.
#[test]
fn the_image_is_built_and_runs_as_compose_runs_it() {
    let test = "contrib::container::the_image_is_built_and_runs_as_compose_runs_it";
    let Some(podman) = Podman::new(test) else { return };
    if !Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
        return crate::support::skip::report(test, "ca-certificates is not on this machine");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut rootfs = Command::new(file("contrib/container/rootfs.sh"));
    succeeds(rootfs.arg(podman.small()).arg(folder.path().join("rootfs")));
    // The folder stands for the first stage, which is not built then.
    let mut build = podman.build("mailchime");
    build.arg(format!("--build-context=build={}", folder.path().display()));
    succeeds(build.arg("-f").arg(file("contrib/container/Containerfile")).arg(folder.path()));

    let said = succeeds(&mut podman.command(&["image", "inspect", "mailchime"]));
    let image: Value = serde_json::from_str(&said).unwrap();
    let config = &image[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/usr/bin/mailchime"]));
    let health = ["CMD", "/usr/bin/mailchime", "health", "--config", "/etc/mailchime/proxy.toml"];
    assert_eq!(image[0]["Healthcheck"]["Test"], json!(health));
    assert!(config["Volumes"]["/var/lib/mailchime"].is_object(), "{said}");

    let confined = confined();
    let socket = text("contrib/container/proxy.toml");
    let socket = socket.split("\"unix:").nth(1).unwrap().split('"').next().unwrap();
    // Docker mounts nothing in memory by itself, Podman also /run.
    for more in [&["--read-only-tmpfs=false"][..], &[]] {
        let mut show = podman.run();
        let said = show.arg("--rm").args(&confined).args(more).args(["mailchime", "show", socket]);
        // The state and the socket can be written, and nothing else. No capability, and none to be had.
        assert_eq!(succeeds(said), "65532 1 0 1\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n");
    }
    let mut shell = podman.run();
    shell.args(["--rm", "--entrypoint=/bin/sh", "mailchime", "-c", "true"]);
    let (succeeded, said) = ends(&mut shell);
    assert!(!succeeded && said.contains("\"/bin/sh\": stat /bin/sh: no such file"), "{said}");

    // Its health, its end, and its state at the next start.
    let detached = ["--detach", "--name=one", "--volume=state:/var/lib/mailchime"];
    succeeds(podman.run().args(detached).args(&confined).arg("mailchime"));
    let mut healthy = podman.command(&["healthcheck", "run", "one"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ends(&mut healthy).0 {
        assert!(Instant::now() < deadline, "it is not healthy");
    }
    succeeds(&mut podman.command(&["stop", "--time=60", "one"]));
    let said = succeeds(&mut podman.command(&["logs", "one"]));
    assert_eq!(said, "serve\n--config\n/etc/mailchime/proxy.toml\nstopped by 15\n");
    let ended = succeeds(&mut podman.command(&["inspect", "--format={{.State.ExitCode}}", "one"]));
    assert_eq!(ended, "0\n");
    let mut health = podman.run();
    health.args(["--rm", "--volume=state:/var/lib/mailchime"]).args(&confined);
    succeeds(health.args(["mailchime", "health"]));
    let mut health = podman.run();
    assert!(!ends(health.arg("--rm").args(&confined).args(["mailchime", "health"])).0);
}

/// What compose.yaml lets mailchime do and not do, as options of `podman run`.
fn confined() -> Vec<String> {
    let compose = text(COMPOSE);
    let lines: Vec<_> = compose.lines().map(str::trim).collect();
    let has = |line: &str| assert!(lines.contains(&line), "{line} is not in compose.yaml");
    has("read_only: true");
    has("cap_drop: [ALL]");
    has("security_opt: [\"no-new-privileges:true\"]");
    let options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"];
    let mut options: Vec<_> = options.map(str::to_owned).into();
    let tmpfs = lines.iter().skip_while(|line| **line != "tmpfs:").skip(1);
    let tmpfs = tmpfs.map_while(|line| line.strip_prefix("- "));
    options.extend(tmpfs.map(|tmpfs| format!("--tmpfs={tmpfs}")));
    assert!(options.len() > 3, "{options:?}");
    options
}

/// Keys that lie beside the sources are not in the layers of a build.
#[test]
fn a_build_gets_no_keys() {
    let test = "contrib::container::a_build_gets_no_keys";
    let Some(podman) = Podman::new(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let secret = [
        "certs/server.key",
        "certs/server.pem",
        "certs/apns.p12",
        "certs/apns.p8",
        "contrib/container/tls/fullchain.pem",
        "contrib/container/tls/privkey.pem",
        "mailchime.db",
        "mailchime.db-wal",
        "some/where/mailchime.key",
        "target/release/mailchime",
        "fuzz/target/x",
    ];
    let wanted =
        ["./Cargo.toml", "./certs/README.md", "./contrib/container/rootfs.sh", "./src/main.rs"];
    for name in secret.into_iter().chain(wanted) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let ignore = text("contrib/container/Containerfile.dockerignore");
    assert_eq!(podman.copied(folder.path(), &ignore), wanted);
}

#[test]
fn compose_takes_its_file() {
    let test = "contrib::container::compose_takes_its_file";
    let check = |path: &Path| {
        let mut command = python(test, SCHEMAS)?;
        command.args(["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]);
        command.arg(path);
        Some(command)
    };
    for path in [COMPOSE, HOST] {
        let Some(mut command) = check(&file(path)) else { return };
        succeeds(&mut command);
    }
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("compose.yaml");
    fs::write(&wrong, text(COMPOSE).replace("restart:", "restarts:")).unwrap();
    let (succeeded, said) = ends(&mut check(&wrong).unwrap());
    assert!(!succeeded && said.contains("restarts"), "{said}");
}

/// There is no line of a network in it, and none of a Dovecot.
#[test]
fn a_container_with_the_network_of_the_host_is_restricted_as_the_other_one() {
    let service = |path| {
        let text = text(path);
        let lines = text.lines().skip_while(|line| *line != "  mailchime:").skip(1);
        let lines = lines.take_while(|line| line.starts_with("    "));
        let lines = lines.filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned);
        lines.collect::<BTreeSet<_>>()
    };
    let (compose, host) = (service(COMPOSE), service(HOST));
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
        one.difference(other).cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        only(&compose, &host),
        [
            "      - \"993:1993\"",
            "      - ./proxy.toml:/etc/mailchime/proxy.toml:ro",
            "      - ./tls:/etc/mailchime/tls:ro",
            "    depends_on: [dovecot]",
            "    networks: [outside, mail]",
            "    ports:",
        ]
    );
    assert_eq!(
        only(&host, &compose),
        [
            "      - /etc/mailchime:/etc/mailchime:ro",
            "      - /run/mailchime",
            "    network_mode: host",
        ]
    );
    assert!(compose.contains("    cap_drop: [ALL]") && compose.contains("    read_only: true"));
}

/// The image dovecot/dovecot reads it beside its own configuration.
#[test]
fn dovecot_takes_the_file_that_compose_gives_it() {
    let test = "contrib::container::dovecot_takes_the_file_that_compose_gives_it";
    let lines = text("contrib/container/dovecot.conf");
    assert!(text(COMPOSE).contains("./dovecot.conf:"));
    let Some((taken, said)) = doveconf(test, &lines) else { return };
    assert!(taken, "{said}");
    let settings = lines.lines().filter(|line| !line.starts_with('#'));
    let missing: Vec<_> = settings.filter(|line| !said.contains(line)).collect();
    assert!(missing.is_empty(), "{missing:?} is not in\n{said}");
    // That of Dovecot 2.3.
    let before = lines.replace("auth_allow_cleartext = yes", "disable_plaintext_auth = no");
    let (taken, said) = doveconf(test, &before).unwrap();
    assert!(!taken && said.contains("disable_plaintext_auth"), "{said}");
}

#[test]
fn kubernetes_takes_the_manifests() {
    let test = "contrib::container::kubernetes_takes_the_manifests";
    let check = |path: &Path| {
        let mut command = python(test, KUBERNETES)?;
        command.args(["-m", "kubernetes_validate", "--strict"]).arg(path);
        Some(command)
    };
    let manifests = file("contrib/kubernetes/mailchime.yaml");
    let Some(mut command) = check(&manifests) else { return };
    succeeds(&mut command);
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    let text = text("contrib/kubernetes/mailchime.yaml").replace("readinessProbe", "readyProbe");
    fs::write(&wrong, text).unwrap();
    let (succeeded, said) = ends(&mut check(&wrong).unwrap());
    assert!(!succeeded && said.contains("readyProbe"), "{said}");
}

#[test]
fn the_workflows_keep_to_their_schema() {
    let test = "contrib::container::the_workflows_keep_to_their_schema";
    let Some(mut command) = python(test, SCHEMAS) else { return };
    command.args(["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]);
    succeeds(
        command.args(["ci", "release"].map(|name| file(&format!(".github/workflows/{name}.yml")))),
    );
}
