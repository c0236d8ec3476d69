//! What tests need to be deterministic.

#[cfg(feature = "testing")]
mod assertions;
mod clock;
#[cfg(feature = "testing")]
mod describe;
#[cfg(feature = "testing")]
mod drains;
#[cfg(feature = "testing")]
mod due;
#[cfg(feature = "testing")]
mod pattern;
#[cfg(feature = "testing")]
mod test_box;

#[cfg(feature = "testing")]
pub use self::assertions::{Expected, Many, One, Subject};
pub use self::clock::ManualClock;
#[cfg(feature = "testing")]
pub use self::drains::DrainLimit;
#[cfg(feature = "testing")]
pub use self::pattern::{Pattern, absent, anything, exactly, that};
#[cfg(feature = "testing")]
pub use self::test_box::{TestBox, TestBoxBuilder};
#[cfg(feature = "testing")]
#[doc(inline)]
pub use crate::{assert_dead_lettered, assert_processed, assert_published, json_pattern, refute_published};
