-- All that the other databases have come to by their migrations up to this number; those files say what the
-- columns mean. MariaDB commits each statement by itself, so each has to be one that may be run again.
-- Names are compared by code point, with their case and the spaces at their end. A key has 3072 bytes at most,
-- and 4 for each character.

create table if not exists account (
    id bigint not null auto_increment primary key,
    name varchar(512) not null,
    backend varchar(320),
    created_at bigint not null,
    folded varchar(1024),
    domain varchar(512),
    credentials mediumtext,
    credentials_until bigint,
    credentials_since bigint,
    credentials_proved_at bigint,
    parked text,
    parked_since bigint,
    refusals bigint,
    refused_at bigint,
    login_wanted_at bigint,
    password_since bigint,
    password_at bigint,
    unique key (name),
    key account_by_folded_name (folded(255)),
    key account_by_domain (domain),
    key account_by_backend (backend),
    key account_by_expiry (credentials_until)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists credential (
    account bigint not null,
    number bigint not null,
    sealed mediumtext not null,
    until bigint,
    since bigint not null,
    proved_at bigint not null,
    primary key (account, number),
    key credential_by_expiry (until),
    foreign key (account) references account (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists mailbox (
    id bigint not null auto_increment primary key,
    account bigint not null,
    name varchar(1024) not null,
    uid_validity bigint,
    uid_next bigint,
    messages bigint,
    unseen bigint,
    highest_mod_seq bigint,
    due_since bigint,
    due_marks bigint not null default 0,
    due_state varchar(128),
    -- no key holds the whole of such a name
    name_hash varchar(64) character set ascii collate ascii_bin as (sha2(name, 256)) persistent,
    unique key (account, name_hash),
    key mailbox_by_name (account, name(100)),
    key mailbox_due (due_since, account),
    foreign key (account) references account (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists subscription (
    id bigint not null auto_increment primary key,
    account bigint not null,
    transport varchar(32) not null,
    endpoint_hash varchar(64) not null,
    endpoint mediumtext not null,
    app varchar(255) not null,
    route varchar(1024) not null,
    options mediumtext not null,
    registered_at bigint not null,
    heard_at bigint,
    pushed_at bigint,
    outdated_since bigint,
    outdated_at bigint,
    state varchar(16) not null default 'active',
    renews bigint not null default 1,
    secrets mediumtext,
    expires_at bigint,
    failing_since bigint,
    failing_kind varchar(32),
    own_fault bigint,
    unique key (account, transport, endpoint_hash, app),
    key subscription_by_endpoint (endpoint_hash),
    key subscription_by_silence (heard_at),
    key subscription_pending (state, registered_at),
    key subscription_by_expiry (expires_at),
    foreign key (account) references account (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists subscription_mailbox (
    subscription bigint not null,
    mailbox bigint not null,
    owed_since bigint,
    primary key (subscription, mailbox),
    key subscription_mailbox_by_mailbox (mailbox),
    key subscription_mailbox_owed (owed_since, subscription),
    foreign key (subscription) references subscription (id) on delete cascade,
    foreign key (mailbox) references mailbox (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists node (
    name varchar(255) not null primary key,
    incarnation varchar(255) not null,
    beats bigint not null
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists invalidation (
    node varchar(255) not null,
    account varchar(512) not null,
    login bigint not null,
    primary key (node, account)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists service (
    id bigint not null primary key,
    served bigint not null,
    seen_at bigint not null
) engine = InnoDB default character set utf8mb4 collate utf8mb4_nopad_bin;
