//! `docs/rpc.md` says what the declarations say.

use longshore_rpc::app::{App, Parts};
use longshore_rpc::docs;

#[test]
fn the_documentation_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/rpc.md");
    let want = docs::markdown(&App::new(Parts::default()).registry);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &want).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == want, "docs/rpc.md is stale: run UPDATE_DOCS=1 cargo test -p longshore-rpc --test docs");
}

#[test]
fn every_example_is_accepted_and_every_method_is_described() {
    let app = App::new(Parts::default());
    for method in app.registry.iter() {
        method.example_decodes(app.clone()).unwrap_or_else(|error| panic!("{}: {error}", method.name()));
    }
    let text = docs::markdown(&app.registry);
    assert!(!text.contains("\n\n\n\nCallable"), "a method lacks its description");
}
