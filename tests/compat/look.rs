//! Looking at disks that the kernel wrote, and comparing what is seen with what the kernel and
//! btrfs-progs see.

mod csum_report;
mod encrypted;
mod logged;
mod mapped;
mod mounted;
mod recovered;
mod resolved;
mod seeds;
mod several;
