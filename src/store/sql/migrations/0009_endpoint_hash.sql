-- What identifies an endpoint is the SHA-256 of its canonical form, which the program works out behind this,
-- and what only its transport knows of it is JSON.

alter table device add column endpoint_hash text;

alter table device add column options text;
