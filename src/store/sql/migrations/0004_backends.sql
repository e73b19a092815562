-- Who accepted an account's user, and which devices registered under a password that is no longer in use.

alter table account add column backend text; -- by its name or its address; null in rows from before

alter table account add column password_since bigint; -- when its user first logged in with this password, if
-- there was another one before

alter table device add column outdated_since bigint; -- the account got another password then, and the device
-- has not registered with it; null when it has
