-- Who is registered, for which mailboxes, and what they were told.
-- Times are milliseconds since 1970 UTC. TEXT and BIGINT only, so that SQLite and PostgreSQL take
-- the same text. A migration that was released is never edited: its checksum is in every database.

create table account (
    name text not null primary key,
    credentials text,     -- sealed by the vault; null where none are kept
    parked text,          -- why its watcher gave up, null while it may try
    parked_since bigint,
    created_at bigint not null
);

create table device (
    account text not null references account (name) on delete cascade,
    token text not null,  -- lower case: what identifies the device
    subtopic text not null,
    token_given text not null,
    aps_account_id text not null,
    version bigint not null,
    topic text not null,
    registered_at bigint not null,
    pushed_at bigint,
    primary key (account, token, subtopic)
);

create index device_by_age on device (registered_at);

create table device_mailbox (
    account text not null,
    token text not null,
    subtopic text not null,
    mailbox text not null, -- decoded, UTF-8
    owed_since bigint,     -- a push for it is still due to this device since then
    primary key (account, token, subtopic, mailbox),
    foreign key (account, token, subtopic) references device (account, token, subtopic)
        on delete cascade
);

create index device_mailbox_owed on device_mailbox (account) where owed_since is not null;

-- The state of which all devices of the account were told, or have the mailbox marked as owed.
-- Numbers are unsigned 64 bits kept in a signed column, bit for bit.
create table snapshot (
    account text not null references account (name) on delete cascade,
    mailbox text not null,
    uid_validity bigint,
    uid_next bigint,
    messages bigint,
    unseen bigint,
    highest_mod_seq bigint,
    primary key (account, mailbox)
);
