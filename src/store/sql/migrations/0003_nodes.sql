-- The processes that share this database. A node lives as long as the others see its beats change.

create table node (
    name text not null primary key,
    incarnation text not null, -- made up by the process that has the name now
    beats bigint not null
);

-- What each node is to read again because another process has changed it.

create table news (
    node text not null,
    account text not null,
    login bigint not null, -- 1 when the account's user has just logged in, else 0
    primary key (node, account)
);
