//! What several tests need: a network namespace of their own, a root of files, certificates, an HTTP client, and a memory of inputs that
//! failed.

#[path = "../../tests/support/certificates.rs"]
pub(crate) mod certificates;
pub(crate) mod http;
pub(crate) mod log;
#[path = "../../tests/support/netns/mod.rs"]
pub(crate) mod netns;
#[path = "../../tests/support/properties.rs"]
mod properties;

pub(crate) use netns::{in_namespace as in_network_namespace, run};
pub(crate) use properties::replayed;

/// A root of a file system with these files.
pub(crate) fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    root
}

/// Runs a test that awaits in a network namespace of its own.
pub(crate) fn in_network_namespace_async<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    in_network_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
}

#[test]
fn an_input_that_failed_is_tried_again_before_any_other() {
    use proptest::prelude::{ProptestConfig, any};
    use proptest::test_runner::TestRunner;

    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("below/tests.rs").display().to_string();
    let check = |cases, fails: bool| {
        let tried = std::cell::RefCell::new(Vec::new());
        let mut runner = TestRunner::new(replayed(ProptestConfig::with_cases(cases), &source));
        let result = runner.run(&any::<u64>(), |input| {
            tried.borrow_mut().push(input);
            proptest::prop_assert!(!fails || input % 16 != 0, "{input} fails");
            Ok(())
        });
        (result.is_ok(), tried.into_inner())
    };
    assert_eq!(check(0, true), (true, Vec::<u64>::new()), "nothing is kept");
    let (passes, tried) = check(10_000, true);
    assert!(!passes);
    let failed = *tried.iter().find(|input| *input % 16 == 0).expect("one has failed");
    let kept = std::fs::read_to_string(folder.path().join("below/tests.txt")).expect("it is kept");
    assert_eq!(kept.lines().filter(|line| line.starts_with("cc ")).count(), 1, "{kept}");
    assert_eq!(check(0, false), (true, vec![failed]), "it is tried although nothing new is");
    assert!(!check(0, true).0, "and fails again");
}
