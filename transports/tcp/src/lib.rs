//! NVMe/TCP transport of the NVMe-oF target.
