//! Real clients and real disks: what others wrote we read, what others speak we answer, and what stands on
//! us stands after a restart.
//!
//! Each test that needs a program prints which one is absent and passes; `tests/run` installs them all.

mod bounded;
mod cryptsetup;
mod dm_integrity;
mod exports;
mod fio;
mod golden;
mod integrity;
mod kernel_fs;
mod keys;
mod look;
mod model;
mod nbd_tools;
mod online;
mod qemu_tools;
mod reencrypt;
mod rescued;
mod shift;
mod show;
mod tokens;
mod up;
