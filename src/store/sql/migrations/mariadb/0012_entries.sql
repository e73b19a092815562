alter table account add column if not exists entry_at bigint;

alter table account add column if not exists left_at bigint;
