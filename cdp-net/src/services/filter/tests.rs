//! What is shared by the groups of a file, whatever becomes of the file. Nobody answers at the other site here.

use super::*;
use crate::link::identity::Identity;
use crate::services::peers::PeerBook;
use crate::services::role::Notes;

const DISK: u64 = 600 << 20;

/// A file with these groups, each of one disk, and their spools.
fn config(place: &tempfile::TempDir, groups: &[&str]) -> Config {
    let path = |name: String| place.path().join(name);
    let mut text = format!(
        "state = \"unused\"\n[[peer]]\nname = \"p\"\nfingerprint = \"sha256:{}\"\n[filter]\n\
         to = [\"cdp://127.0.0.1:1\"]\nspool = {{ memory = \"64MiB\", disk = \"600MiB\" }}\n",
        "01".repeat(32)
    );
    for name in groups {
        let disk = path(format!("{name}.img"));
        std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let socket = path(format!("{name}.sock"));
        text.push_str(&format!(
            "[[filter.group]]\nname = {name:?}\nlisten = \"nbd+unix:///?socket={}\"\n\
             disk = [{{ name = \"d\", source = {disk:?} }}]\n",
            socket.display()
        ));
    }
    Config::parse(&text).unwrap()
}

/// What all of them may take together is what the file says, whoever comes and goes.
#[test]
fn a_new_file_promises_no_more_spool_than_it_says() {
    let (place, runtime) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let context = Context {
        runtime: runtime.handle().clone(),
        identity: Arc::new(Identity::open_or_make(&place.path().join("state"), "filter").unwrap()),
        peers: PeerBook::default(),
        state: place.path().join("state"),
        notes: Notes::new(|_| {}),
    };
    let filter = Filter::start(&config(&place, &["a"]), &context).unwrap();
    let shares = || filter.shared.groups().iter().map(|group| group.spool_bytes()).collect::<Vec<_>>();
    assert_eq!(shares(), [DISK]);
    for (groups, share) in [(&["a", "b", "c"][..], DISK / 3), (&["a", "c"], DISK / 2), (&["d"], DISK)] {
        filter.reload(&config(&place, groups)).unwrap();
        assert_eq!(shares(), vec![share; groups.len()], "{groups:?}");
    }
}
