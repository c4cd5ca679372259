//! Longshore: the daemon and the embedding facade.
