//! `seed`: the first copy of an image with holes, beside `cp --sparse=always` of it plus its checksum.

use super::Plan;
use super::figure::{Figure, Reach, median};
use super::image::{self, MIB, settle};
use super::servers::Ours;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

pub(crate) fn run(plan: &Plan) -> Result<(), Failure> {
    let image = image::sparse()?;
    let replica = image::directory().join("seeded");
    let copy = image::directory().join("copy.img");
    let bytes = std::fs::metadata(&image)?.len() as f64 / MIB as f64;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..plan.seed_rounds {
        remove(&replica);
        settle();
        let server = Ours::start(&image, &replica)?;
        ours.push(bytes / server.seeded.as_secs_f64());
        server.stop()?;
        remove(&replica);
        let _ = std::fs::remove_file(&copy);
        settle();
        limit.push(bytes / copied(&image, &copy)?);
        std::fs::remove_file(&copy)?;
        eprintln!("  seed {round}: ours {:.0} MiB/s, cp and CRC {:.0} MiB/s", ours[round], limit[round]);
    }
    let figure = Figure {
        id: "seed",
        unit: "MiB/s",
        ours: &ours,
        limit: Some(median(&limit)),
        reach: Reach::AtLeast(0.8),
        conditions: &[("image", format!("{bytes:.0}MiB"))],
        conditions_hold: true,
    };
    println!("{figure}");
    std::fs::remove_file(image)?;
    Ok(())
}

/// Seconds of the copy, its sync, and the checksum of the image.
fn copied(image: &Path, copy: &Path) -> Result<f64, Failure> {
    let begin = Instant::now();
    let status = Command::new("cp").arg("--sparse=always").arg(image).arg(copy).status()?;
    if !status.success() {
        return Err("cp failed".into());
    }
    File::open(copy)?.sync_all()?;
    let file = File::open(image)?;
    let mut piece = vec![0; MIB];
    let (mut crc, mut at) = (0, 0);
    loop {
        match file.read_at(&mut piece, at)? {
            0 => break,
            count => {
                crc = crc32c::crc32c_append(crc, &piece[..count]);
                at += count as u64;
            }
        }
    }
    std::hint::black_box(crc);
    Ok(begin.elapsed().as_secs_f64())
}

/// A replica that may not be there.
pub(crate) fn remove(replica: &Path) {
    let _ = std::fs::remove_dir_all(replica);
}
