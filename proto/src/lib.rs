//! The wire contract of Annulus: generated messages and services, and the only conversions between
//! them and the domain types of `annulus-types`.
//!
//! Payloads are decoded to [`bytes::Bytes`] without a copy: a stored `Bytes` would pin its whole
//! decode buffer, so whoever keeps one copies it first.

pub mod convert;

/// Messages and services of protocol version 1.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code brings its own attributes and sizes"
)]
pub mod v1 {
    tonic::include_proto!("annulus.v1");
}

/// All files of the contract as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The protocol version spoken on peer links.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol version understood on peer links.
pub const PROTOCOL_OLDEST: u32 = 1;
