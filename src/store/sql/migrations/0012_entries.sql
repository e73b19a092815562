-- The entry of METADATA by which a mail server knows that it is to send events of the account.

alter table account add column entry_at bigint; -- mailchime wrote it, or last saw it, then; 0 is perhaps, null is not

alter table account add column left_at bigint; -- no subscription is left since then, and the entry is to go first
