//! The `annulus` binary as a library: a node put together from its parts, a local cluster of real
//! processes, and the guided tour.
//!
//! [`node`] is one process of a cluster; [`dev`] starts several; [`demo`] shows them to a person.
//! `main.rs` only reads the command line ([`cli`]).

pub mod cli;
pub mod cluster;
pub mod config;
pub mod debug;
pub mod demo;
pub mod dev;
pub mod init;
pub mod logs;
pub mod node;
