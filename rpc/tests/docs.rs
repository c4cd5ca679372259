//! `docs/rpc.md` and `docs/metrics.md` say what the declarations say.

use longshore_rpc::app::{App, Parts};
use longshore_rpc::{docs, metrics};

#[test]
fn the_documentation_is_current() {
    let methods = docs::markdown(&App::new(Parts::default()).registry);
    for (name, want) in [("rpc", methods), ("metrics", metrics::markdown())] {
        let path = format!("{}/../docs/{name}.md", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &want).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == want, "docs/{name}.md is stale: run UPDATE_DOCS=1 cargo test -p longshore-rpc --test docs");
    }
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
