//! Whole clusters in one process, for the rules that no single module can show.
//!
//! Every rule is a story: a function that plays it and returns what was seen. The story is told
//! twice, with all rules on and with the one rule switched off; the second telling shows that the
//! test can fail, and what the rule is for.
//!
//! A cluster is real but for its surroundings. The network, the disks and the clocks are simulated,
//! tokio's time is paused: nothing waits in real time, and "to wait" is to let simulated time pass
//! until something holds. The hosts, the links, gRPC and openraft are those of the product. A
//! process dies with its sockets, its unsynced writes and its tasks; whether the rows of its engine
//! outlive it is the story's choice, because an engine promises nothing about that (E1).
//!
//! Not played here: two processes on one data folder (N1), which is the folder lock's business. Two
//! copies of one folder are.

mod callee;
mod caller;
mod cluster;
mod disk;
mod node;
mod process_engine;
mod registers;
mod server;

mod answers;
mod digest;
mod engine_ahead;
mod follower_reads;
mod forgotten_promise;
mod late_answers;
mod lives;
mod lost_tail;
mod membership;
mod openraft_suite;
mod polls;
mod refill;
mod reign;
mod reseat;
mod restarted;
mod retire;
mod seed;
mod shut_gate;
mod slow_leader;
mod snapshot;
mod strangers;
mod time_entries;
mod transfer;
