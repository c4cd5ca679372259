//! Block-device core and modules.
