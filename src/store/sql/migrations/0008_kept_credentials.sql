-- More than one set of credentials of an account: the password that its user last logged in with stays in the
-- row of the account, or a token where there is no password. What is kept beside is here.

create table credential (
    account text not null references account (name) on delete cascade,
    number bigint not null,
    sealed text not null,      -- by the vault
    until bigint,              -- as account.credentials_until
    since bigint not null,     -- when a backend first accepted it
    proved_at bigint not null, -- when one last accepted it, as far as that is noted
    primary key (account, number)
);

create index credential_by_expiry on credential (until) where until is not null;

alter table account add column credentials_since bigint; -- as credential.since; null in rows from before

alter table account add column credentials_proved_at bigint; -- as credential.proved_at

-- What watching costs and tells when a backend refuses the credentials.

alter table account add column refusals bigint; -- tries in a row that were refused, null is none

alter table account add column refused_at bigint; -- when the last of them was

alter table account add column login_wanted_at bigint; -- when its devices were last pushed to have the user log in
