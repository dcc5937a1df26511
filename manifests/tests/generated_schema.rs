//! The generated tables are what their generator writes.
#![forbid(unsafe_code)]

#[path = "../examples/generate_schema.rs"]
mod generate_schema;

/// The folder with `k8s-1.36-schemas.json`; without it the comparison is skipped.
const FOLDER: &str = "FLOTILLA_KUBERNETES_TABLES";

#[test]
#[allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test tells what it skipped")]
fn the_table_in_the_repository_is_generated() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        // Not eprintln: the test runner keeps that to itself when a test passes.
        std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!(
                "SKIPPED: set {FOLDER} to the folder of k8s-1.36-schemas.json to compare the generated table\n"
            ),
        )
        .unwrap();
        return;
    };
    let folder = std::path::Path::new(&folder);
    for (generated, committed) in [
        (generate_schema::table(folder).unwrap(), include_str!("../schema/kubernetes.json")),
        (generate_schema::protobuf_table(folder).unwrap(), include_str!("../schema/protobuf.json")),
    ] {
        let first = generated.lines().zip(committed.lines()).find(|(generated, committed)| generated != committed);
        assert_eq!(first, None, "run the generator again");
        assert_eq!(generated.len(), committed.len(), "run the generator again");
    }
}
