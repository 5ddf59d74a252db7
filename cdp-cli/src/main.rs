//! The cdp command.
fn main() {}
