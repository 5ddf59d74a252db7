//! The cdp command.

#![forbid(unsafe_code)]

fn main() {
    println!("cdp {}", env!("CARGO_PKG_VERSION"));
}
