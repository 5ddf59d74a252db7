//! The cdp command.

#![forbid(unsafe_code)]

use cdp_cli::exit::Exit;
use cdp_cli::libraries::Libraries;

fn main() -> Exit {
    cdp_cli::run(std::env::args_os(), &Libraries::default())
}
