//! Run-to-completion reactor: one pinned core, one io_uring, pollers, timers, inbox, DMA memory.
