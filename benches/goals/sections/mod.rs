pub(crate) mod backlog;
pub(crate) mod batches;
pub(crate) mod bytes;
pub(crate) mod history;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod memory;
pub(crate) mod publish;
