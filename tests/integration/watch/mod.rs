//! Watchers on real sockets: a backend, a store in a temporary folder, and what they tell `push`.

mod away;
mod cuts;
mod dialogues;
mod entries;
mod followers;
mod given_up;
mod hints;
mod life;
mod logins;
mod mail;
mod mailboxes;
mod needless;
mod nodes;
mod on_demand;
mod parked;
mod previews;
mod resumed;
mod scale;
mod unnumbered;
mod ways;
