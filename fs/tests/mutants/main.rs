//! The checker on images that were damaged on purpose, with checksums made right again: what each finding
//! code is for is found under that code and no other, and nothing that can be written on a disk takes
//! the checker down, nor anything else that reads.
//!
//! `VARVE_MUTANTS=10000` makes that many random mutants instead of a few hundred;
//! `VARVE_MUTANTS_OF=FOLDER` takes the images in it, raw or dumps, instead of those that are here;
//! `VARVE_MUTANTS_TOOL=1` runs `btrfs check` on each as well and prints where the two differ.

mod disk;
mod mutate;
mod random;
mod rules;
mod tour;
