//! NVMe-oF target core: subsystems, controllers, queue pairs, commands.
