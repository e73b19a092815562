//! The `mailchime` program: arguments in, exit code out.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use zeroizing_alloc::ZeroAlloc;

/// Overwrites memory when it is freed: passwords pass through many buffers, also those of libraries. mimalloc, since
/// what SQLite's threads allocate other threads free: with glibc they wait for each other (benches/README.md), and the
/// allocator of musl, in the static builds, has one lock for all.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    mailchime::cli::main()
}
