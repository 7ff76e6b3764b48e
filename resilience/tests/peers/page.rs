//! The page `peers` names tests; they exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

/// Names of the functions that are marked as tests.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["src", "tests"] {
        sources(&root.join(dir), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            let head = line.strip_prefix("async ").unwrap_or(line);
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                marked = true;
            } else if let Some(name) = head.strip_prefix("fn ")
                && std::mem::take(&mut marked)
            {
                names.extend(name.split(['(', '<']).next().map(str::to_owned));
            }
        }
    }
    names
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let page = include_str!("../../src/peers.md");
    let tests = tests();
    assert!(tests.contains("every_test_that_the_page_names_is_there"));
    let mut rows = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let last = row.trim_end_matches([' ', '|']).rsplit('|').next();
        let named: Vec<&str> = last
            .into_iter()
            .flat_map(|cell| cell.split('`').skip(1).step_by(2))
            .collect();
        if row.starts_with("| defect") {
            continue;
        }
        rows += 1;
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            assert!(tests.contains(name), "{name} is no test: {row}");
        }
    }
    assert!(rows >= 40, "{rows} rows");
}
