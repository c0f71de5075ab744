//! Ctrl-C as a wish: long work looks at it where it can stop.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;
use varve_block::{Rt, Task};

/// From its start to [`Interrupt::end`], a signal is a wish and does not end the program.
pub(crate) struct Interrupt {
    raised: Rc<Cell<bool>>,
    watching: Task<()>,
}

impl Interrupt {
    pub(crate) fn watch(rt: &Rt) -> anyhow::Result<Interrupt> {
        let mut signals = rt.signals()?;
        let raised = Rc::new(Cell::new(false));
        let set = Rc::clone(&raised);
        let watching = rt.spawn(async move {
            let _ = signals.next().await;
            set.set(true);
        });
        Ok(Interrupt { raised, watching })
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.get()
    }

    /// The answer to work that asks whether it should go on.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub(crate) async fn end(self) {
        self.watching.cancel().await;
    }
}
