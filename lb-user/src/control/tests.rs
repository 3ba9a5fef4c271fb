//! Scripts on a virtual clock.
