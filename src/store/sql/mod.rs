//! What speaks SQL to the databases: their connections, transactions, schemas, and what is peculiar to each.

pub(super) mod dialect;
pub(super) mod fault;
pub(super) mod file;
mod kept;
pub(super) mod mariadb;
mod pool;
pub(super) mod postgres;
pub(super) mod rows;
pub(super) mod schema;
pub(super) mod sqlite;
pub(super) mod statement;
pub(in crate::store) mod trust;
mod unbroken;
pub(super) mod work;

pub(super) use dialect::{
    MOST_ROWS, SelectBy, TableChange, Take, UpdateFrom, Upsert, UpsertBy, values,
};
pub(super) use statement::{Shaped, query, select_by, together, update_from, with_list};
