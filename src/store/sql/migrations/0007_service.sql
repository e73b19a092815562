-- How long a device has been silent is told by the time in which phones could register: the time of
-- service. It began as the time of day, and goes on only while a program serves. In milliseconds.

create table service (
    id bigint not null primary key, -- 1
    served bigint not null,
    seen_at bigint not null -- the time of day then, as far as it was believed
);

alter table device add column heard_at bigint; -- when it last registered; null counts as now

alter table device add column outdated_at bigint; -- when its account got the other password

alter table account add column password_at bigint; -- the same as password_since

drop index device_by_age;

create index device_by_silence on device (heard_at);
