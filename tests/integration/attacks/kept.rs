//! What is kept, and for how long: secrets in files, in the database and in memory, after nobody needs
//! them any more; and what somebody can spoil who may write beside mailchime.

mod files;
mod forgotten;
mod memory;
mod rows;
