//! `longshore check DEVICE...`: verifies an erasure-coded array from its members, offline, without changing them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use longshore::bdev::ec::check::{ReadAt, Scope, check};
use rustix::fs::{FileType, FlockOperation};
use rustix::io::Errno;

/// Exit status when the check could not be made.
const CANNOT: u8 = 4;

/// Verifies an erasure-coded array from its members, without changing them.
///
/// Give all its files or devices, in any order; no daemon may be serving them. It reports what a start would do (which members it would
/// take, which writes it would finish from the journal) and compares the strips of every stripe that holds data.
///
/// Exit status: 0 sound, 1 degraded (members missing, stale or being filled, or unable to read what others make up for), 2 damaged, 3 the
/// devices do not make an array that could start, 4 the check could not be made.
#[derive(Parser, Debug)]
#[command(name = "longshore check", version)]
struct Args {
    /// The members: files or block devices
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,

    /// Look at superblocks, bitmaps and journals only, not at the stripes
    #[arg(long)]
    metadata_only: bool,
}

/// Runs the subcommand, if the command line names it.
pub(crate) fn requested() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let program = args.next()?;
    if args.next()? != "check" {
        return None;
    }
    let args = Args::parse_from(std::iter::once(program).chain(args));
    Some(ExitCode::from(run(&args).unwrap_or_else(|line| {
        eprintln!("longshore check: {line}");
        CANNOT
    })))
}

fn run(args: &Args) -> Result<u8, String> {
    let devices = args.devices.iter().map(|path| Device::open(path)).collect::<Result<Vec<_>, _>>()?;
    let devices: Vec<&dyn ReadAt> = devices.iter().map(|d| d as &dyn ReadAt).collect();
    let report = check(&devices, Scope { stripes: !args.metadata_only });
    println!("{report}");
    Ok(report.verdict.exit_code())
}

struct Device {
    name: String,
    file: File,
    bytes: u64,
    block: u32,
}

impl Device {
    /// Opens it for reading, and holds off daemons while it is read.
    fn open(path: &Path) -> Result<Device, String> {
        let name = path.display().to_string();
        let cannot = |e: &dyn std::fmt::Display| format!("cannot open '{name}': {e}");
        let mut file = File::open(path).map_err(|e| cannot(&e))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).map_err(|e| match e {
            Errno::AGAIN => format!("'{name}' is being served by a daemon: stop it, or delete its bdev, first"),
            e => cannot(&e),
        })?;
        let stat = rustix::fs::fstat(&file).map_err(|e| cannot(&e))?;
        let block = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => rustix::fs::ioctl_blksszget(&file).map_err(|e| cannot(&e))?,
            FileType::RegularFile => 512,
            _ => return Err(cannot(&"neither a file nor a block device")),
        };
        let bytes = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(|e| cannot(&e))?;
        Ok(Device { name, file, bytes, block })
    }
}

impl ReadAt for Device {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn block(&self) -> u32 {
        self.block
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}
