-- Limits count accounts by their backend.

create index account_by_backend on account (backend);
