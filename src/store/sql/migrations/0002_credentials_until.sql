-- Until when sealed credentials may be kept: an access token goes when it expires. Null is for ever.

alter table account add column credentials_until bigint;

create index account_by_expiry on account (credentials_until) where credentials_until is not null;
