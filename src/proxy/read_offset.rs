//! The offset in a block at which reads begin whose bytes rustls copies.

/// The bytes of a block that are left free before the first byte read.
///
/// rustls copies what is written to it into records. The payload of a record begins 5 bytes after
/// the start of an allocation, which for a full record is the start of a page. If the bytes to copy
/// begin at the start of a page too, the two addresses are 5 bytes apart modulo 4 KiB. The
/// processor then takes loads for dependent on earlier stores to the same offset of another page,
/// and `rep movsb`, by which glibc copies large blocks, becomes up to 25 times slower (16 KiB in 5
/// us in place of 0.2 us on an AMD EPYC). With this offset the loads come before the stores within
/// a page, and the processor sees no such dependence.
pub(super) const READ_OFFSET: usize = 64;
