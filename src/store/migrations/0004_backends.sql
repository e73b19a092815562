-- Who accepted an account's user, and which devices registered under a password that is no longer in use.

alter table account add column backend text; -- by its name or its address; null in rows from before

alter table device add column outdated_since bigint; -- the account's password was changed then, and the
-- device has not registered since; null when it has
