//! Serves a raw file or block device: `nbd_serve URI FILE`.

use cdp_net::file_device::FileDevice;
use cdp_net::nbd::{Export, Server, ServerOptions, Uri};
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: nbd_serve URI FILE";
    let uri: Uri = arguments.next().ok_or(usage)?.parse()?;
    let device = FileDevice::open(arguments.next().ok_or(usage)?.as_ref(), false)?;
    let server = Server::start(ServerOptions::new(uri.address, vec![Export::new("", Arc::new(device))]))?;
    println!("{}", server.uris()[0]);
    loop {
        std::thread::park();
    }
}
