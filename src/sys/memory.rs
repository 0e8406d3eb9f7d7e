//! The C library's heap.

use nftnl::nftnl_sys::libc;

/// Gives the memory that the heap holds free back to the kernel. Takes some milliseconds, in proportion to the heap.
///
/// A list leaves free memory behind all over the heap: of objects as they were read, and of large transactions. The C
/// library would keep it for later, and the daemon would look as large as it once was. Measured with 10,000 Services:
/// 30 MiB of heap before, 23 MiB after.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
