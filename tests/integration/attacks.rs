//! What somebody does who means harm, each by its name: clients and backends that break the
//! protocol, users who are after the mailboxes of others, and readers of what is left lying about.
//!
//! Attacks that a dialogue tells best are in `fixtures/`: `starttls-injection`,
//! `literal-smuggling-by-a-client`, `literal-smuggling-by-a-backend`, `tag-confusion`, `too-long`,
//! `endless-bye`. What strangers can do before a login is in `program::hostile`, too.

mod admin;
mod admission;
mod backend;
mod binary;
mod client;
mod client_id;
mod compression;
mod fair;
mod identity;
mod kept;
mod logs;
mod mailboxes;
pub(crate) mod names;
mod refusals;
mod routing;
mod secrets;
mod tenants;
mod work;
