//! Bugs that can be switched on, to show that the tests would see them.
//!
//! A test that has never failed proves little. Each of these is a mistake somebody made in some
//! block layer; the simulation runs with one of them on and must find it, then with none and must
//! not. Without the crate's feature `sabotage` the switch is a constant `false`.

/// One deliberate bug in an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sabotage {
    #[default]
    None,
    /// A flush joins one that is already running, though that one started too early to cover it.
    FlushJoinsRunning,
    /// A flush is answered while it still runs.
    FlushAnswersEarly,
    /// Requests are not ordered at all.
    NoRangeLock,
    /// The lock covers the bytes a request names, not the blocks that read-modify-write touches.
    LockNotRounded,
    /// Force Unit Access is forgotten on the way down.
    FuaIgnored,
    /// A huge request does all its work in one turn.
    NoTurns,
}

impl Sabotage {
    pub(super) fn is(self, which: Sabotage) -> bool {
        cfg!(feature = "sabotage") && self == which
    }
}
