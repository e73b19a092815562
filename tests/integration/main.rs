//! One binary for all integration tests, so that it links once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

mod admin;
mod api;
mod attacks;
mod config;
mod contrib;
mod demo_parts;
mod dialogues;
mod docs;
mod end_to_end;
mod faults;
mod floors;
mod intake;
mod listeners;
mod lists;
mod logins;
mod matrix;
mod nodes;
mod program;
mod push;
mod relay;
mod replay;
mod store;
mod support;
mod watch;
mod watch_servers;
