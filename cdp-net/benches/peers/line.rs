//! A line between two network namespaces, as quick as it is told to be.

use super::image::program;
use super::parts::Sides;
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

/// The namespaces, each with one end of the line, of its own name.
const SOURCE: &str = "cdp-bench-source";
const TARGET: &str = "cdp-bench-target";
const ENDS: [(&str, &str, &str); 2] = [(SOURCE, "cdp-bench0", "10.77.0.1"), (TARGET, "cdp-bench1", "10.77.0.2")];
/// Bytes at once, and how long a packet waits at most: a quarter of a millisecond of jitter, and no loss of what a connection has under
/// way.
const BURST: &str = "256kb";
const WAIT: &str = "100ms";

/// There as long as this is.
pub(crate) struct Line;

impl Line {
    /// `None`: this needs root, `ip` and `tc`, and a kernel with namespaces, `veth` and `tbf`; why it cannot be is said.
    pub(crate) fn new(bits_per_s: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("  no line: only root makes network namespaces");
            return None;
        }
        for name in ["ip", "tc"] {
            if program(name).is_none() {
                eprintln!("  no line: there is no program {name}");
                return None;
            }
        }
        // What a run that was killed left.
        remove();
        let line = Self;
        match make(bits_per_s) {
            Ok(()) => Some(line),
            Err(error) => {
                eprintln!("  no line: {error}");
                None
            }
        }
    }

    pub(crate) fn sides(&self) -> Sides<'static> {
        let [_, (_, _, target_ip)] = ENDS;
        Sides { source: SOURCE, target: TARGET, target_ip }
    }

    /// Bytes that the source's side has sent, with the heads of all packets, as the shaper counted them.
    pub(crate) fn sent(&self) -> Result<u64, Failure> {
        let [(namespace, device, _), _] = ENDS;
        let said = tool("tc", &["-n", namespace, "-s", "-j", "qdisc", "show", "dev", device])?;
        let shaper: serde_json::Value = serde_json::from_str(&said)?;
        Ok(shaper[0]["bytes"].as_u64().ok_or("tc counts no bytes")?)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        remove();
    }
}

fn make(bits_per_s: u64) -> Result<(), Failure> {
    for (namespace, ..) in ENDS {
        tool("ip", &["netns", "add", namespace])?;
    }
    let [(source, one, _), (target, two, _)] = ENDS;
    // Made where it belongs: nothing of it is ever in the namespace of everybody else.
    tool("ip", &["-n", source, "link", "add", one, "type", "veth", "peer", "name", two, "netns", target])?;
    for (namespace, device, ip) in ENDS {
        tool("ip", &["-n", namespace, "addr", "add", &format!("{ip}/30"), "dev", device])?;
        tool("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        tool("ip", &["-n", namespace, "link", "set", device, "up"])?;
        let rate = format!("{bits_per_s}bit");
        let shaped = ["qdisc", "add", "dev", device, "root", "tbf", "rate", &rate, "burst", BURST, "latency", WAIT];
        tool("tc", &[&["-n", namespace], &shaped[..]].concat())?;
    }
    Ok(())
}

/// With a namespace its end of the line goes, and with that the other one.
fn remove() {
    for (namespace, ..) in ENDS {
        // What is not there need not go.
        let _ = tool("ip", &["netns", "del", namespace]);
    }
}

/// What it says.
fn tool(name: &str, words: &[&str]) -> Result<String, Failure> {
    let path = program(name).ok_or_else(|| format!("there is no program {name}"))?;
    let said = Command::new(path).args(words).output()?;
    if said.status.success() {
        return Ok(String::from_utf8(said.stdout)?);
    }
    Err(format!("{name} {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr).trim()).into())
}
