//! dm-crypt's activation flags, as words. Each may be said in both directions (`--allow-discards=false`);
//! what is not said is as the LUKS2 header keeps it.

use clap::Args;

#[derive(Args, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActivationArgs {
    /// Let discards through encryption: tells an observer which sectors are in use
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_discards: Option<bool>,
    /// Encrypt and decrypt on the core that took the request, never on worker threads
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", alias = "perf-same_cpu_crypt")]
    pub same_cpu_crypt: Option<bool>,
    /// Write from where it was encrypted, without a sorting thread: always so here, kept for the kernel
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", alias = "perf-submit_from_crypt_cpus")]
    pub submit_from_crypt_cpus: Option<bool>,
    /// Decrypt on the core that took the request
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", alias = "perf-no_read_workqueue")]
    pub no_read_workqueue: Option<bool>,
    /// Encrypt on the core that took the request
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", alias = "perf-no_write_workqueue")]
    pub no_write_workqueue: Option<bool>,
    /// Keep these flags in the LUKS2 header, for whoever opens the volume next
    #[arg(long)]
    pub persistent: bool,
    /// Threads that requests above 128k may be spread over; 0 is none. Default: some for ciphers without
    /// instructions of the processor, none for others
    #[arg(long, value_name = "N")]
    pub crypt_workers: Option<usize>,
}

impl ActivationArgs {
    /// What the operator said.
    pub(crate) fn said(&self) -> varve_crypt::Activation {
        varve_crypt::Activation {
            allow_discards: self.allow_discards,
            same_cpu_crypt: self.same_cpu_crypt,
            submit_from_crypt_cpus: self.submit_from_crypt_cpus,
            no_read_workqueue: self.no_read_workqueue,
            no_write_workqueue: self.no_write_workqueue,
        }
    }

    /// These words; where nothing is said, those of `file`.
    pub(crate) fn or(self, file: ActivationArgs) -> ActivationArgs {
        ActivationArgs {
            allow_discards: self.allow_discards.or(file.allow_discards),
            same_cpu_crypt: self.same_cpu_crypt.or(file.same_cpu_crypt),
            submit_from_crypt_cpus: self.submit_from_crypt_cpus.or(file.submit_from_crypt_cpus),
            no_read_workqueue: self.no_read_workqueue.or(file.no_read_workqueue),
            no_write_workqueue: self.no_write_workqueue.or(file.no_write_workqueue),
            persistent: self.persistent || file.persistent,
            crypt_workers: self.crypt_workers.or(file.crypt_workers),
        }
    }
}
