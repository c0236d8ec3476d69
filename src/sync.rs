//! Locks, threads and channels: those of std and crossbeam, under one name for each.
//!
//! The tests in interleavings.rs are built with `--cfg shuttle`. Then they are shuttle's, which runs the threads one at a time, in
//! an order that it chooses anew at every step, and sees when all of them wait for each other. A timeout never comes there:
//! whatever a thread waits for has to be told to it.

#[cfg(not(all(test, shuttle)))]
mod in_use {
    pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, atomic};
    pub(crate) use std::{thread, thread_local};

    pub(crate) use crossbeam_channel as channel;
}

#[cfg(all(test, shuttle))]
mod in_use {
    pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock, atomic};
    pub(crate) use shuttle::{thread, thread_local};

    pub(crate) use crate::interleavings::channel;
}

pub(crate) use self::in_use::{Mutex, MutexGuard, RwLock, atomic, channel, thread, thread_local};
