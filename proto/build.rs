//! Compiles the .proto files with protox, so that no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 5] = [
    "annulus/v1/common.proto",
    "annulus/v1/kv.proto",
    "annulus/v1/routes.proto",
    "annulus/v1/admin.proto",
    "annulus/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure().bytes(".").out_dir(out).compile_fds(descriptors)?;
    Ok(())
}
