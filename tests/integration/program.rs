//! The real binary between stand-ins, as an administrator meets it: what it says about bad input,
//! what it logs, how it ends.

mod admin;
mod certificates;
mod check_push;
mod commands;
mod credentials;
mod database;
mod database_away;
mod demo;
mod doveadm;
mod hostile;
mod import;
mod lenient;
mod logs;
mod master;
mod messages;
mod nodes;
mod reload;
mod setup;
mod stop;
mod store;
mod tls;
mod traps;
