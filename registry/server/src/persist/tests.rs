use std::fs;

use proptest::prelude::*;

use super::*;
use crate::catalogue::{Body, Live, Record, Stamp, plain};

fn store(records: u16) -> Store {
    let mut store = Store::new(1);
    for n in 0..records {
        let id = format!("i{n}").parse().expect("id");
        let mut instance = plain(&id, ([10, 0, 0, 1], 80 + n).into());
        instance.overridden = Some(selvedge_registry::InstanceStatus::OutOfService);
        instance.settle();
        let record = Record {
            service: "orders".parse().expect("name"),
            id,
            stamp: Stamp {
                incarnation: 1,
                hlc: 7 + u64::from(n),
                owner: "n1".into(),
            },
            body: if n % 5 == 4 {
                Body::Cancelled
            } else {
                Body::Live(Live::of(&instance))
            },
        };
        store.merge(record, 0);
    }
    store
}

fn header(hlc: u64) -> Header {
    Header {
        node: "n1".into(),
        saved_ms: 5,
        hlc,
        peers: vec![("n2".into(), ([127, 0, 0, 1], 7900).into())],
    }
}

fn write(dir: &Path, records: u16, hlc: u64) -> std::io::Result<()> {
    let paths = [TEMPORARY, LAST, PREVIOUS].map(|name| dir.join(name));
    file::write(&paths, &header(hlc), store(records).catalogue())
}

#[test]
fn what_was_saved_comes_back_and_the_previous_is_kept() {
    let dir = tempfile::tempdir().expect("directory");
    assert!(load(dir.path(), 2).is_none(), "nothing there");
    write(dir.path(), 10, 1).expect("writes");
    write(dir.path(), 20, 2).expect("writes");
    let restored = load(dir.path(), 2).expect("there");
    assert_eq!(restored.header, header(2));
    let catalogue = restored.store.catalogue();
    assert_eq!(catalogue.len(), 16);
    assert_eq!(catalogue.records().count(), 20, "tombstones too");
    assert_eq!(catalogue.hash(), store(20).catalogue().hash());
    assert_eq!(catalogue.revision().epoch, 2);
    fs::remove_file(dir.path().join(LAST)).expect("removes");
    assert_eq!(load(dir.path(), 2).expect("the previous").header, header(1));
}

#[test]
fn a_full_disk_costs_the_new_one_only() {
    let dir = tempfile::tempdir().expect("directory");
    write(dir.path(), 10, 1).expect("writes");
    // Whatever is written to it: "no space left on device".
    std::os::unix::fs::symlink("/dev/full", dir.path().join(TEMPORARY)).expect("links");
    let error = write(dir.path(), 20, 2).expect_err("full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(load(dir.path(), 2).expect("the last").header, header(1));
    assert!(!dir.path().join(TEMPORARY).exists());
    write(dir.path(), 20, 2).expect("there is room again");
    assert_eq!(load(dir.path(), 2).expect("the new").header, header(2));
}

#[test]
fn a_file_that_was_cut_anywhere_is_not_taken() {
    let dir = tempfile::tempdir().expect("directory");
    write(dir.path(), 5, 1).expect("writes");
    let whole = fs::read(dir.path().join(LAST)).expect("reads");
    for length in 0..whole.len() {
        fs::write(dir.path().join(LAST), &whole[..length]).expect("writes");
        assert!(load(dir.path(), 2).is_none(), "{length} of {}", whole.len());
    }
}

#[test]
fn the_clock_goes_on_after_what_was_saved() {
    for (name, wall_ms, at_least) in [
        ("as usual", 2_000, 2_000 << 16),
        ("the wall was set back", 10, (1_000 << 16) + 1),
    ] {
        let mut clock = resume_clock(&header(1_000 << 16), wall_ms);
        assert!(clock.tick(wall_ms) >= at_least, "{name}");
    }
}

proptest! {
    #[test]
    fn a_file_with_any_bit_turned_is_not_taken(at: prop::sample::Index, bit in 0u8..8) {
        let dir = tempfile::tempdir().expect("directory");
        write(dir.path(), 5, 1).expect("writes");
        let path = dir.path().join(LAST);
        let mut bytes = fs::read(&path).expect("reads");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).expect("writes");
        prop_assert!(load(dir.path(), 2).is_none(), "byte {at}");
    }
}
