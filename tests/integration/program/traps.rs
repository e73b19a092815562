//! The traps of an installation: what an administrator gets wrong in the first hour is found and named with what to
//! do.

mod certificates;
mod checked;
mod commands;
mod dovecot;
mod installed;
mod itself;
mod misleading;
mod occupied;
mod started;
