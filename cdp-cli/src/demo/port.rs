//! What a load needs of a disk, and a checker of an image.

use cdp_net::device::ZeroFlags;
use cdp_net::nbd::{Client, ClientError, NbdError};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A connection to a disk.
pub trait Port: Send {
    /// Reads.
    ///
    /// # Errors
    /// What the disk says.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes; with `fua` durable on return.
    ///
    /// # Errors
    /// What the disk says.
    fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()>;
    /// Makes everything that completed before durable.
    ///
    /// # Errors
    /// What the disk says.
    fn flush(&mut self) -> io::Result<()>;
    /// Gives up a range.
    ///
    /// # Errors
    /// What the disk says.
    fn trim(&mut self, offset: u64, length: u32) -> io::Result<()>;
    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// What the disk says.
    fn write_zeroes(&mut self, offset: u64, length: u32) -> io::Result<()>;
}

fn io_error(error: ClientError) -> io::Error {
    match error {
        ClientError::Io(error) => error,
        ClientError::Nbd(NbdError::NoSpace) => io::ErrorKind::StorageFull.into(),
        other => io::Error::other(other),
    }
}

impl Port for Client {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Client::read(self, offset, buffer).map_err(io_error)
    }
    fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        Client::write(self, offset, data, fua).map_err(io_error)
    }
    fn flush(&mut self) -> io::Result<()> {
        Client::flush(self).map_err(io_error)
    }
    fn trim(&mut self, offset: u64, length: u32) -> io::Result<()> {
        Client::trim(self, offset, length, false).map_err(io_error)
    }
    fn write_zeroes(&mut self, offset: u64, length: u32) -> io::Result<()> {
        Client::write_zeroes(self, offset, length, ZeroFlags::default()).map_err(io_error)
    }
}

/// An image that can be read: a restored file, or a disk that is served.
pub trait Blocks {
    /// Reads.
    ///
    /// # Errors
    /// What the image says.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Blocks for File {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Blocks for Client {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Port::read(self, offset, buffer)
    }
}

impl Blocks for &[u8] {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// An image file that nobody serves yet.
#[derive(Debug)]
pub struct ImageFile(pub File);

impl Port for ImageFile {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
    fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.0.write_all_at(data, offset)?;
        if fua { self.flush() } else { Ok(()) }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn trim(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.write_zeroes(offset, length)
    }
    fn write_zeroes(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.0.write_all_at(&vec![0; length as usize], offset)
    }
}
