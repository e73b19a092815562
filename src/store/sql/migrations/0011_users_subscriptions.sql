-- What users make themselves: subscriptions that count when their endpoint has answered, that may end, and
-- whose transport needs secrets of the endpoint.

alter table subscription add column state text not null default 'active'; -- or 'pending': it gets nothing yet

alter table subscription add column secrets text; -- of its transport, sealed by the vault; null is none

-- 1: its client registers it again by itself, or mailchime does, and its silence ends it; 0: silence does not
alter table subscription add column renews bigint not null default 1;

alter table subscription add column expires_at bigint; -- it ends then, however long it is silent; null is never

alter table subscription add column failing_since bigint; -- pushes have failed since then; null is not

alter table subscription add column failing_kind text; -- how the last of them failed: the name of the verdict

alter table subscription add column own_fault bigint; -- for so many milliseconds the fault was seen to be its own

create index subscription_pending on subscription (registered_at) where state = 'pending';

create index subscription_by_expiry on subscription (expires_at) where expires_at is not null;

-- whose mailboxes are to be asked for, the longest due first
create index mailbox_due on mailbox (due_since, account) where due_since is not null;

-- What of mailbox.due_since other nodes than the one that watches have written: how often, and the state that the
-- source told, if there is one that says it all.
alter table mailbox add column due_marks bigint not null default 0;

alter table mailbox add column due_state text;
