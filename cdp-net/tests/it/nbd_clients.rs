//! The NBD server and the programs that people use: each test is skipped, by name, where its program is missing.

use crate::nbd::tls::certificates;
use cdp_net::file_device::FileDevice;
use cdp_net::nbd::{Address, Export, Server, ServerOptions, TlsServer};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::TempDir;

const SIZE: u64 = 64 << 20;

struct Served {
    directory: TempDir,
    _server: Server,
    uri: String,
    image: PathBuf,
}

fn serve(address: impl FnOnce(&Path) -> Address, tls: bool) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let device = Arc::new(FileDevice::open(&image, false).unwrap());
    let exports = vec![Export { name: String::new(), description: "a disk for tests".into(), device }];
    let mut options = ServerOptions::new(address(directory.path()), exports);
    if tls {
        certificates(directory.path());
        options.tls = Some(TlsServer::from_directory(directory.path()).unwrap());
    }
    let server = Server::start(options).unwrap();
    let uri = server.uris()[0].to_string();
    Served { directory, _server: server, uri, image }
}

fn unix(directory: &Path) -> Address {
    Address::Unix(directory.join("nbd.sock"))
}

fn tcp(_: &Path) -> Address {
    Address::Tcp { host: "127.0.0.1".into(), port: 0 }
}

/// Whether a program can be started; says `skipped` if not.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout").arg("120").arg(program).args(arguments).output().unwrap()
}

fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// A file with data and holes.
fn sparse(path: &Path) -> Vec<u8> {
    let mut data = pattern(7, SIZE);
    data[8 << 20..24 << 20].fill(0);
    data[40 << 20..41 << 20].fill(0);
    std::fs::write(path, &data).unwrap();
    data
}

#[test]
fn nbdinfo_sees_everything() {
    if !installed("nbdinfo") {
        return;
    }
    for served in [serve(unix, false), serve(tcp, false)] {
        let text = succeed("nbdinfo", &[&served.uri]);
        for expected in [
            "protocol: newstyle-fixed without TLS, using structured packets",
            "export-size: 67108864",
            "base:allocation",
            "can_multi_conn: true",
            "can_fast_zero: true",
            "can_cache: true",
            "can_df: true",
            "can_fua: true",
            "can_trim: true",
            "is_read_only: false",
            "block_size_minimum: 512",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
            "a disk for tests",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(succeed("nbdinfo", &["--list", &served.uri]).contains("export-size: 67108864"));
        std::fs::write(&served.image, pattern(1, 1 << 20)).unwrap();
        std::fs::File::options().write(true).open(&served.image).unwrap().set_len(SIZE).unwrap();
        let map = succeed("nbdinfo", &["--map", &served.uri]);
        assert!(map.contains("1048576") && map.contains("hole,zero"), "{map}");
    }
}

#[test]
fn nbdcopy_there_and_back() {
    if !installed("nbdcopy") {
        return;
    }
    for served in [serve(unix, false), serve(tcp, false)] {
        let (from, to) = (served.directory.path().join("from"), served.directory.path().join("to"));
        let data = sparse(&from);
        succeed("nbdcopy", &["--flush", from.to_str().unwrap(), &served.uri]);
        assert!(std::fs::read(&served.image).unwrap() == data);
        succeed("nbdcopy", &["--connections=4", "--requests=64", &served.uri, to.to_str().unwrap()]);
        assert!(std::fs::read(&to).unwrap() == data);
    }
}

#[test]
fn qemu_img_converts_and_compares() {
    if !installed("qemu-img") {
        return;
    }
    let served = serve(unix, false);
    let (from, to) = (served.directory.path().join("from"), served.directory.path().join("to.qcow2"));
    let data = sparse(&from);
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", from, &served.uri]);
    assert!(std::fs::read(&served.image).unwrap() == data);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", from, &served.uri]);
    succeed("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &served.uri, to]);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", from, to]);
    let map = succeed("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri]);
    assert!(map.contains("\"zero\": true"), "{map}");
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    if !installed("qemu-io") {
        return;
    }
    let served = serve(unix, false);
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 4096 512",
        "aio_write -P 0x33 1M 64k",
        "aio_flush",
        "write -z 8k 8k",
        "write -z -u 64k 64k",
        "discard 128k 64k",
        "flush",
        "read -P 0x11 0 4096",
        "read -P 0x22 4096 512",
        "read -P 0 8k 8k",
        "read -P 0 64k 128k",
        "read -P 0x33 1M 64k",
        "read -P 0x11 4608 512",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(&served.uri);
    let text = succeed("qemu-io", &arguments);
    assert!(!text.contains("failed"), "{text}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let engines = if installed("fio") { succeed("fio", &["--enghelp"]) } else { return };
    if !engines.contains("nbd") {
        println!("skipped: fio has no nbd engine");
        return;
    }
    for served in [serve(unix, false), serve(tcp, false)] {
        let uri = format!("--uri={}", served.uri);
        for (rw, bs) in [("randwrite", "4k-4k"), ("write", "64k-64k"), ("randwrite", "512-300k")] {
            let (rw, bs) = (format!("--rw={rw}"), format!("--bsrange={bs}"));
            let fixed = ["--name=x", "--ioengine=nbd", "--size=32m", "--iodepth=32", "--verify=crc32c", "--fsync=64"];
            let aux = format!("--aux-path={}", served.directory.path().display());
            let mut arguments = fixed.to_vec();
            arguments.extend(["--verify_fatal=1", "--verify_state_save=0", &aux, &uri, &rw, &bs]);
            succeed("fio", &arguments);
        }
    }
}

#[test]
fn libnbd_over_tls() {
    if !installed("nbdinfo") {
        return;
    }
    if !succeed("nbdinfo", &["--version"]).contains("libnbd") || !installed("nbdcopy") {
        return;
    }
    let served = serve(tcp, true);
    let with = format!(
        "{}?tls-certificates={}",
        served.uri.replace("127.0.0.1", "localhost"),
        served.directory.path().display()
    );
    let output = run("nbdinfo", &[&with]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if error.contains("TLS is not supported") || error.contains("compiled without") {
        println!("skipped: libnbd without TLS");
        return;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("with TLS"), "{text}\n{error}");
    let from = served.directory.path().join("from");
    let data = sparse(&from);
    succeed("nbdcopy", &["--flush", from.to_str().unwrap(), &with]);
    assert!(std::fs::read(&served.image).unwrap() == data);
    let plain = served.uri.replace("nbds:", "nbd:");
    assert!(!run("nbdinfo", &[&plain]).status.success(), "without TLS it must be refused");
}

#[test]
fn qemu_over_tls() {
    if !installed("qemu-img") {
        return;
    }
    let served = serve(tcp, true);
    let port = served.uri.rsplit(':').next().unwrap();
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", served.directory.path().display());
    let image = format!("driver=nbd,host=localhost,port={port},tls-creds=t");
    let output = run("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]);
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("TLS credentials support requires") || error.contains("invalid object type") {
        println!("skipped: qemu-img without TLS");
        return;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("64 MiB"), "{text}\n{error}");
}
