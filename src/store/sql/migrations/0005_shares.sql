-- What limits count by: the name of an account without case, its domain, and the token of a device.

alter table account add column folded text;

alter table account add column domain text;

update account set folded = lower(name), domain = '';

-- What stands behind the last "@": without the characters that are not one, the end is cut off up to it.
update account set domain = substr(name, length(rtrim(name, replace(name, '@', ''))) + 1)
    where name like '%@%';

create index account_by_folded_name on account (folded);

create index account_by_domain on account (domain);

create index device_by_token on device (token);
