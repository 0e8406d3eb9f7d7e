//! The README names every field and flag.

use nftproxyd::config::{FLAGS, field_paths};

#[test]
fn the_readme_names_every_field_and_flag() {
    let readme = include_str!("../README.md");
    let missing: Vec<String> = field_paths()
        .map(|path| format!("`{path}`"))
        .chain(FLAGS.iter().map(|flag| format!("`--{}`", flag.name)))
        .filter(|name| !readme.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in README.md: {}", missing.join(", "));
}
