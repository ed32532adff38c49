//! Compiles the .proto files with protox, so that no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

use protox::prost::Message as _;

const FILES: [&str; 6] = [
    "annulus/v1/common.proto",
    "annulus/v1/kv.proto",
    "annulus/v1/routes.proto",
    "annulus/v1/admin.proto",
    "annulus/v1/manager.proto",
    "annulus/v1/peer.proto",
];

#[expect(clippy::disallowed_methods, reason = "a build script writes where cargo tells it to")]
fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").out_dir(out).compile_fds(descriptors)?;
    Ok(())
}
