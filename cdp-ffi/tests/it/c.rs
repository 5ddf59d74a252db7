//! The header and the example under real compilers.

use super::root;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"];

/// Runs a compiler; `None`, said by name, where it is not there.
fn compile(compiler: &str, arguments: &[&str], what: &str) -> Option<Output> {
    match Command::new(compiler).args(STRICT).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {what}, {compiler} is not there");
            None
        }
        Err(error) => panic!("{compiler}: {error}"),
    }
}

fn expect_success(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The static library that cargo built for this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let dirs = test.ancestors().skip(1).take(2);
    let found = dirs.map(|dir| dir.join("libcdp.a")).find(|library| library.is_file());
    found.unwrap_or_else(|| panic!("no libcdp.a beside {}", test.display()))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_header_stands_alone_in_c_and_in_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let include = root().join("include");
    for (compiler, standard, name) in
        [("cc", "-std=c99", "alone.c"), ("cc", "-std=c11", "alone.c"), ("c++", "-std=c++11", "alone.cpp")]
    {
        let source = dir.path().join(name);
        // Twice: its guard must hold.
        fs::write(&source, "#include <cdp.h>\n#include <cdp.h>\nint main(void) { return CDP_OK; }\n").unwrap();
        let arguments = [standard, "-I", text(&include), "-fsyntax-only", text(&source)];
        if let Some(output) = compile(compiler, &arguments, "the header alone") {
            expect_success(&output, standard);
        }
    }
}

#[test]
fn the_c_example_compiles_links_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (include, source) = (root().join("include"), root().join("examples/c/version.c"));
    let (program, library) = (dir.path().join("version"), library());
    let arguments = [
        "-std=c99",
        "-I",
        text(&include),
        "-o",
        text(&program),
        text(&source),
        text(&library),
        "-lpthread",
        "-ldl",
        "-lm",
    ];
    let Some(output) = compile("cc", &arguments, "examples/c/version.c") else { return };
    expect_success(&output, "examples/c/version.c");
    let output = Command::new(&program).output().unwrap();
    expect_success(&output, "version");
    let expect = format!("cdp {} (interface 1): done\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expect);
}
