//! What tests need to be deterministic.

mod clock;
#[cfg(feature = "testing")]
mod describe;
#[cfg(feature = "testing")]
mod drains;
#[cfg(feature = "testing")]
mod due;
#[cfg(feature = "testing")]
mod test_box;

pub use self::clock::ManualClock;
#[cfg(feature = "testing")]
pub use self::drains::DrainLimit;
#[cfg(feature = "testing")]
pub use self::test_box::{TestBox, TestBoxBuilder};
