//! Processing: claim, deliver, settle. On the worker's threads ([`start`]), or on the caller's ([`process_batch`]).

mod batch;
mod by_hand;
mod delivery;
mod dispatch;
mod handle;
mod handoff;
mod housekeeping;
mod in_flight;
mod left_alone;
mod plan;
mod pool;
mod run;
mod scope;
mod settling;
mod shared;
mod startup;
mod telling;
mod ticking;
mod turn;
mod under_way;
mod unsettled;
mod watch;

#[cfg(feature = "testing")]
pub(crate) use self::by_hand::drain_while;
pub(crate) use self::by_hand::{drain, process_batch};
pub(crate) use self::handle::{SHUTDOWN_LIMIT, WorkerSlot, start};
pub use self::handle::{ShutdownReport, Worker};
pub(crate) use self::handoff::{Handoff, Reserved};
#[cfg(feature = "testing")]
pub(crate) use self::scope::HandlerScope;
pub(crate) use self::scope::refuse_inside_handler;
pub(crate) use self::unsettled::{Unsettled, settle_last};
