//! Folders that do not open, and folders that only seem not to.

use std::path::{Path, PathBuf};

use annulus_engine::{EngineError, open_or_move_aside};
use annulus_runtime::{Disk, Open, RealDisk};

use crate::bench::{Folder, Variant, all, bytes, get, put};

const GARBAGE: &[u8] = b"no engine has ever lived in this folder\n";

/// Files of the names that fjall and sled read first.
fn fill_with_garbage(dir: &Path) {
    RealDisk.create_dir_all(dir).expect("a folder");
    for name in ["version", "conf", "db"] {
        let file = RealDisk.open(&dir.join(name), Open::CreateNew).expect("a file");
        file.write_all_at(GARBAGE, 0).expect("garbage");
    }
}

fn sibling(dir: &Path, suffix: &str) -> PathBuf {
    dir.with_file_name(format!("engine{suffix}"))
}

pub fn a_damaged_folder_is_moved_aside(variant: Variant) {
    let folder = Folder::new();
    let dir = folder.engine();
    for number in 1..=2 {
        fill_with_garbage(&dir);
        let opened = open_or_move_aside(&RealDisk, variant.kind(), &dir).expect("an engine");
        let aside = sibling(&dir, &format!(".damaged-{number}"));
        assert_eq!(opened.moved_aside.as_deref(), Some(&*aside));
        let kept = annulus_runtime::disk::read_file(&RealDisk, &aside.join("version"), 1024);
        assert_eq!(kept.expect("the garbage"), GARBAGE);

        // In its place is an empty engine that works, and is still there the next time.
        assert!(all(&*opened.engine).is_empty());
        put(&*opened.engine, &[(bytes("key"), bytes("value"))]);
        opened.engine.make_durable().expect("make durable");
        drop(opened);
        let opened = open_or_move_aside(&RealDisk, variant.kind(), &dir).expect("an engine");
        assert_eq!(opened.moved_aside, None);
        assert_eq!(get(&*opened.engine, "key"), Some(bytes("value")));
        drop(opened);
        RealDisk.remove_dir_all(&dir).expect("remove");
    }
}

pub fn a_folder_in_use_is_not_moved(variant: Variant) {
    let folder = Folder::new();
    let dir = folder.engine();
    let opened = open_or_move_aside(&RealDisk, variant.kind(), &dir).expect("an engine");
    put(&*opened.engine, &[(bytes("key"), bytes("value"))]);

    let second = open_or_move_aside(&RealDisk, variant.kind(), &dir);
    assert!(matches!(second, Err(EngineError::Failed { .. })), "{second:?}");
    assert!(!RealDisk.exists(&sibling(&dir, ".damaged-1")).expect("exists"));
    put(&*opened.engine, &[(bytes("key"), bytes("other"))]);
    assert_eq!(get(&*opened.engine, "key"), Some(bytes("other")));
}
