//! `include/cdp.h` is what the source says. `CDP_REWRITE=1` writes it anew.

use super::root;
use std::fs;
use std::path::Path;

#[test]
fn the_header_in_the_repository_is_the_one_of_the_source() {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_src(ffi.join("src/lib.rs")).with_config(config).generate().unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).unwrap();
    for function in exported(&fs::read_to_string(ffi.join("src/lib.rs")).unwrap()) {
        assert!(made.contains(&format!("{function}(")), "the header's generator left out {function}");
    }
    let path = root().join("include/cdp.h");
    if std::env::var_os("CDP_REWRITE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "include/cdp.h is not what the source says: CDP_REWRITE=1 cargo test -p cdp-ffi");
}

/// Names of the functions that the source exports.
fn exported(source: &str) -> Vec<String> {
    let lines = source.lines().zip(source.lines().skip(1));
    let after_attribute = lines.filter(|(attribute, _)| attribute.trim() == "#[unsafe(no_mangle)]");
    let name = |line: &str| Some(line.split_once(" fn ")?.1.split('(').next()?.to_owned());
    let names: Vec<String> = after_attribute.filter_map(|(_, line)| name(line)).collect();
    assert!(names.len() >= 3, "{names:?}");
    names
}
