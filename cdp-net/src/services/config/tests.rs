use super::*;

const PEER: &str = "state = \"s\"\n[[peer]]\nname = \"p\"\nfingerprint = \"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\n";

fn with(text: &str) -> String {
    format!("{PEER}{text}")
}

fn said(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn every_example_is_a_configuration_of_its_role() {
    for role in example::ROLES {
        let text = example::of(role).unwrap();
        let config = Config::parse(&text).unwrap_or_else(|error| panic!("{role}: {error}"));
        assert_eq!(config.roles(), [role]);
        // What is commented out is no less right.
        let whole: String = text
            .lines()
            .map(|line| {
                let bare = line.strip_prefix("# ").unwrap_or(line);
                let is_setting = bare.starts_with("[[") || bare.split(' ').nth(1) == Some("=");
                format!("{}\n", if is_setting { bare } else { line })
            })
            .collect();
        Config::parse(&whole).unwrap_or_else(|error| panic!("{role}: {error}\n{whole}"));
    }
    assert_eq!(example::of("coordinator"), None);
}

#[test]
fn all_roles_stand_in_one_file() {
    let tables: String = example::ROLES
        .iter()
        .map(|role| {
            let text = example::of(role).unwrap();
            let (_, table) = text.split_once("tenant = \"*\"\n").unwrap();
            table.to_owned()
        })
        .collect();
    let config = Config::parse(&with(&tables)).unwrap();
    assert_eq!(config.roles(), example::ROLES);
    assert_eq!(config.filter.unwrap().spool, Spool { memory: Bytes(1 << 30), disk: Bytes(8 << 30) });
}

#[test]
fn paths_are_from_the_files_directory_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cdp.toml");
    std::fs::write(&path, example::of("replica-host").unwrap()).unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.state, directory.path().join("state"));
    assert_eq!(config.replica_host.unwrap().directory, directory.path().join("replicas"));
}

#[test]
fn what_cannot_be_meant_is_said_with_its_place() {
    const SET: &str = "[[set]]\nname = \"s\"\ngroups = [\"g\", \"x\"]\n";
    let host = "[replica-host]\nlisten = \"127.0.0.1:1\"\ndirectory = \"d\"\n";
    let filter = |more: &str| with(&format!("[filter]\nto = [\"cdp://h:1\"]\n{more}"));
    let group =
        "[[filter.group]]\nname = \"g\"\nlisten = \"nbd://127.0.0.1:5\"\ndisk = [{ name = \"d\", source = \"x\" }]\n";
    for (text, place) in [
        (PEER.to_owned(), "file: it has none of"),
        ("state = \"s\"\n".to_owned() + host, "peer: nobody is let in"),
        (with(&host.replace("listen", "lisen")), "unknown field `lisen`"),
        (with(&format!("{host}groups-max = 0")), "replica-host.groups-max"),
        (with(&format!("{host}quota = \"12 parsecs\"")), "line 8, column 9, quota: "),
        (PEER.replace("sha256:01", "sha256:xx") + host, "peer \"p\": its fingerprint"),
        (format!("{PEER}{}{host}", PEER.replace("state = \"s\"\n", "")), "stands there twice"),
        (filter(""), "missing field `group`"),
        (filter(&format!("{group}{group}")), "it is there twice"),
        (filter(&group.replace("disk = [{ name = \"d\", source = \"x\" }]", "disk = []")), "1 to 64 disks"),
        (filter(&group.replace("\"g\"", "\"a/b\"")), "is no name"),
        (filter(&format!("spool = {{ memory = \"1KiB\" }}\n{group}")), "filter.spool.memory: at least"),
        (filter(&format!("connections = 99\n{group}")), "filter.connections: 99"),
        (filter(group).replace("cdp://h:1", "cdp://h:1/group"), "names a group"),
        (filter(&format!("{group}[[set]]\nname = \"s\"\ngroups = [\"g\"]\n")), "at least two"),
        (filter(&format!("{group}[[set]]\nname = \"s\"\ngroups = [\"x\", \"y\"]\n")), "none of its groups"),
        (filter(&format!("{group}{SET}")), "or set filter.listen"),
        (filter(&format!("{group}{SET}members = [\"cdp://h:2\"]\n")), "is not cdp://HOST:PORT/GROUP"),
        (filter(&format!("{group}{SET}members = [\"cdp://h:2/g\"]\n")), "that is not served here"),
        (filter(&format!("{group}{SET}members = [\"cdp://h:2/x\", \"cdp://h:3/x\"]\n")), "two members are"),
        (
            filter(&format!("{group}{SET}members = [\"cdp://h:2/x\"]\n").replace("\"x\"]", "\"x\", \"y\"]")),
            "is the group \"y\"",
        ),
        (with("[source-proxy]\nlisten = \"127.0.0.1:1\"\nto = []\n"), "source-proxy.to"),
        (
            with("[source-proxy]\nlisten = \"127.0.0.1:1\"\nto = [\"cdp://h:1\"]\ncache = { disk = \"79MiB\" }\n"),
            "source-proxy.cache.disk: at least 80.0 MiB are needed",
        ),
        (
            with(
                "[target-proxy]\nlisten = \"127.0.0.1:1\"\nto = [\"cdp://h:1\"]\ncache = { memory = \"63MiB\", disk = \"0\" }\n",
            ),
            "target-proxy.cache.memory: without `disk` at least 64.0 MiB are needed",
        ),
        (with("[source-proxy]\nlisten = \"127.0.0.1:1\"\nto = [\"cdp://h:1\"]\nlevel = 99\n"), "source-proxy.level"),
        (
            with(&format!("{host}[[rule]]\nname = \"r\"\nfrom = \"10.0.0.0/40\"\nto = \"0.0.0.0/0\"\n")),
            "rule \"r\": \"40\"",
        ),
        (with("[gateway]\nlisten = \"127.0.0.1:1\"\nticket-key = \"k\"\nto = {}\n"), "gateway.to"),
        (with("[gateway]\nlisten = \"127.0.0.1:1\"\nticket-key = \"k\"\nto = { a = \"h\" }\n"), "gateway.to.a"),
        (
            with(
                "[gateway]\nlisten = \"127.0.0.1:1\"\nticket-key = \"k\"\nto = { a = \"h:1\" }\nrate-per-tenant = \"8191B\"\n",
            ),
            "gateway.rate-per-tenant",
        ),
        (with("[target-proxy]\nlisten = \"127.0.0.1:1\"\nto = [\"cdp://h:1\"]\nroute = \"a\"\n"), "target-proxy.route"),
        (with(&format!("{host}route = \"a\"")), "replica-host.route"),
        (
            with("[gateway]\nlisten = \"127.0.0.1:1\"\nticket-key = \"k\"\nto = { a = \"h:1\" }\n")
                + "[target-proxy]\nlisten = \"127.0.0.1:1\"\nto = [\"cdp://h:1\"]\n",
            "target-proxy.listen: 127.0.0.1:1 is that of gateway.listen",
        ),
    ] {
        let error = said(&text);
        assert!(error.contains(place), "{place}: {error}\n{text}");
    }
}

#[test]
fn a_file_that_is_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Config::load(&directory.path().join("x.toml")).unwrap_err().to_string();
    assert!(missing.starts_with("it cannot be read: "), "{missing}");
    let long = directory.path().join("long.toml");
    std::fs::write(&long, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Config::load(&long).unwrap_err().to_string().contains("at most 1048576"));
}

/// Somebody gives a file of keys instead of a configuration, and what he is told goes to a log.
#[test]
fn nothing_of_a_file_of_keys_is_shown() {
    let secret = "a7ed22863fa45d3a15d107a108ffd1644f9c847b8fd395c09d46297c7a88adc8";
    for text in [format!("# keys\n1 {secret}\n"), format!("{secret}=\n"), format!("-----BEGIN KEY-----\n{secret}==\n")]
    {
        let error = said(&text);
        assert!(error.starts_with("line ") && !error.contains(&secret[..12]), "{error}");
    }
}
