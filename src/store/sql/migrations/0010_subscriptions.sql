-- Subscriptions of any transport in place of devices. Ids are made by the database: {id} stands for a column
-- whose values it makes. Names and endpoints are told apart by case and by spaces at their end.

drop index account_by_expiry;
drop index account_by_folded_name;
drop index account_by_domain;
drop index account_by_backend;
drop index credential_by_expiry;

alter table account rename to former_account;
alter table credential rename to former_credential;
alter table news rename to invalidation;

create table account (
    id {id},
    name text not null unique,
    backend text,               -- who accepted its user: its name or its address; null in rows from before
    created_at bigint not null,
    folded text,                -- what limits count by: the name without case, and its domain
    domain text,
    credentials text,           -- sealed by the vault; null where none are kept
    credentials_until bigint,   -- until when they may be kept; null is for ever
    credentials_since bigint,   -- as credential.since
    credentials_proved_at bigint,
    parked text,                -- why its watcher gave up, null while it may try
    parked_since bigint,
    refusals bigint,            -- tries in a row that were refused, null is none
    refused_at bigint,          -- when the last of them was
    login_wanted_at bigint,     -- when its devices were last pushed to have the user log in
    password_since bigint,      -- when its user first logged in with this password, if there was another before
    password_at bigint          -- the same by the time of service
);

create table credential (
    account bigint not null references account (id) on delete cascade,
    number bigint not null,
    sealed text not null,
    until bigint,
    since bigint not null,      -- when a backend first accepted it
    proved_at bigint not null,  -- when one last accepted it, as far as that is noted
    primary key (account, number)
);

-- A mailbox is there while a subscription wants it: with the state of which all of its subscriptions were
-- told, or have it marked as owed. Numbers are unsigned 64 bits kept in a signed column, bit for bit.
create table mailbox (
    id {id},
    account bigint not null references account (id) on delete cascade,
    name text not null,         -- decoded, UTF-8
    uid_validity bigint,
    uid_next bigint,
    messages bigint,
    unseen bigint,
    highest_mod_seq bigint,
    due_since bigint,           -- its state is to be asked for since then; null while it is not
    unique (account, name)
);

create table subscription (
    id {id},
    account bigint not null references account (id) on delete cascade,
    transport text not null,
    endpoint_hash text not null,
    endpoint text not null,     -- as it was given
    app text not null,
    route text not null,
    options text not null,      -- JSON, the transport's own
    registered_at bigint not null,
    heard_at bigint,            -- the same by the time of service; null counts as now
    pushed_at bigint,
    outdated_since bigint,      -- its account got another password then, with which it has not registered
    outdated_at bigint,         -- the same by the time of service
    unique (account, transport, endpoint_hash, app)
);

create table subscription_mailbox (
    subscription bigint not null references subscription (id) on delete cascade,
    mailbox bigint not null references mailbox (id) on delete cascade,
    owed_since bigint,          -- a push for it is due since then
    primary key (subscription, mailbox)
);

insert into account (name, backend, created_at, folded, domain, credentials, credentials_until,
    credentials_since, credentials_proved_at, parked, parked_since, refusals, refused_at, login_wanted_at,
    password_since, password_at)
select name, backend, created_at, folded, domain, credentials, credentials_until, credentials_since,
    credentials_proved_at, parked, parked_since, refusals, refused_at, login_wanted_at, password_since,
    password_at
from former_account order by name;

insert into credential (account, number, sealed, until, since, proved_at)
select a.id, c.number, c.sealed, c.until, c.since, c.proved_at
from former_credential c join account a on a.name = c.account;

insert into subscription (account, transport, endpoint_hash, endpoint, app, route, options, registered_at,
    heard_at, pushed_at, outdated_since, outdated_at)
select a.id, 'apns', d.endpoint_hash, d.token_given, d.subtopic, d.topic, d.options, d.registered_at,
    d.heard_at, d.pushed_at, d.outdated_since, d.outdated_at
from device d join account a on a.name = d.account
where d.endpoint_hash is not null order by d.registered_at, a.id, d.token, d.subtopic;

insert into mailbox (account, name, uid_validity, uid_next, messages, unseen, highest_mod_seq)
select a.id, wanted.mailbox, s.uid_validity, s.uid_next, s.messages, s.unseen, s.highest_mod_seq
from (select distinct m.account, m.mailbox from device_mailbox m
    join device d on d.account = m.account and d.token = m.token and d.subtopic = m.subtopic
    where d.endpoint_hash is not null) wanted
join account a on a.name = wanted.account
left join snapshot s on s.account = wanted.account and s.mailbox = wanted.mailbox
order by a.id, wanted.mailbox;

insert into subscription_mailbox (subscription, mailbox, owed_since)
select s.id, m.id, former.owed_since
from device_mailbox former
join device d on d.account = former.account and d.token = former.token and d.subtopic = former.subtopic
join account a on a.name = former.account
join subscription s on s.account = a.id and s.endpoint_hash = d.endpoint_hash and s.app = d.subtopic
join mailbox m on m.account = a.id and m.name = former.mailbox;

drop table device_mailbox;
drop table device;
drop table snapshot;
drop table former_credential;
drop table former_account;

delete from account where not exists (select 1 from subscription where subscription.account = account.id);

create index account_by_folded_name on account (folded);
create index account_by_domain on account (domain);
create index account_by_backend on account (backend);
create index account_by_expiry on account (credentials_until) where credentials_until is not null;
create index credential_by_expiry on credential (until) where until is not null;
create index subscription_by_endpoint on subscription (endpoint_hash);
create index subscription_by_silence on subscription (heard_at);
create index subscription_mailbox_by_mailbox on subscription_mailbox (mailbox);
create index subscription_mailbox_owed on subscription_mailbox (subscription) where owed_since is not null;
