//! The tests' own stretch of network does what it says.

#[path = "../wan/mod.rs"]
pub(crate) mod network;

use network::{Wan, Weather};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Answers every byte by itself; what was said before it, as long as somebody is connected.
fn echo() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let accepting = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = accepting.accept() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let mut buffer = [0; 64 << 10];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    listener
}

fn exchange(stream: &mut TcpStream, bytes: usize) -> Duration {
    let begun = Instant::now();
    let data: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = data.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut back = vec![0; bytes];
    stream.read_exact(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == data, "bytes changed on their way");
    begun.elapsed()
}

#[test]
fn bytes_pass_in_order_and_as_late_as_the_weather_says() {
    let listener = echo();
    let wan = Wan::start(listener.local_addr().unwrap());
    let mut stream = TcpStream::connect(wan.address()).unwrap();
    exchange(&mut stream, 100_000);
    wan.set(Weather { delay: Duration::from_millis(50), ..Weather::default() });
    assert!(exchange(&mut stream, 1) >= Duration::from_millis(100));
    wan.set(Weather { rate: 4 << 20, ..Weather::default() });
    assert!(exchange(&mut stream, 2 << 20) >= Duration::from_millis(490));
    wan.set(Weather { delay: Duration::from_millis(10), loss_ppm: 300_000, rate: 0 });
    exchange(&mut stream, 500_000);
    let (there, back) = wan.bytes();
    assert_eq!((there, back), (100_000 + 1 + (2 << 20) + 500_000, there));
}

#[test]
fn a_silent_line_keeps_what_it_has_and_a_cut_one_does_not() {
    let listener = echo();
    let wan = Wan::start(listener.local_addr().unwrap());
    let mut stream = TcpStream::connect(wan.address()).unwrap();
    exchange(&mut stream, 10);
    wan.silence();
    stream.write_all(b"later").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(stream.read(&mut [0; 8]).is_err(), "nothing passes");
    wan.mend();
    stream.set_read_timeout(None).unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"later");
    wan.cut();
    assert!(matches!(stream.read(&mut back), Ok(0) | Err(_)));
    let closed = TcpStream::connect(wan.address()).map(|mut stream| stream.read(&mut back));
    assert!(matches!(closed, Ok(Ok(0) | Err(_)) | Err(_)), "{closed:?}");
    wan.mend();
    exchange(&mut TcpStream::connect(wan.address()).unwrap(), 1000);
}
