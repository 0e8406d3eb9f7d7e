//! Where tests with random inputs keep the inputs that failed.

use std::path::Path;

use proptest::test_runner::{Config, FileFailurePersistence};

/// Keeps what fails in a file of `testdata/proptest-regressions`, to be committed, and tries all of it again before
/// anything new. `source` is `file!()`.
pub(crate) fn replayed(config: Config, source: &str) -> Config {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/proptest-regressions");
    let file = folder.join(source).with_extension("txt").display().to_string();
    // Kept for as long as the test program runs: proptest wants a constant.
    let persistence = FileFailurePersistence::Direct(file.leak());
    Config { failure_persistence: Some(Box::new(persistence)), ..config }
}
