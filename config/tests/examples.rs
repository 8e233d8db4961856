//! Every file of `examples/` is valid, says what it seems to say, and survives the way through JSON.

#![expect(clippy::unwrap_used, reason = "a test file")]

use pillion_config::{Format, Kind, Resource, ResourceSet, Source, check, locate, parse};

fn examples() -> Vec<Source> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            Source::new(name, &std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn every_example_is_valid_alone_and_with_the_others() {
    let sources = examples();
    for format in [Format::Yaml, Format::Json, Format::Toml] {
        assert!(sources.iter().any(|source| source.format == format), "no example in {format:?}");
    }
    let resources = parse(&sources).unwrap_or_else(|errors| panic!("{errors}"));
    let set: ResourceSet = resources.iter().map(|resource| resource.value.clone()).collect();
    let problems = check(&set);
    assert!(problems.is_empty(), "{}", locate(&problems, &resources));
    for kind in Kind::ALL {
        assert!(set.iter().any(|resource| resource.key().kind == kind), "no example of {kind}");
    }
}

#[test]
fn resources_read_back_what_they_write() {
    for resource in parse(&examples()).unwrap() {
        let json = resource.value.to_json();
        let again = Resource::from_json(&json).unwrap_or_else(|errors| panic!("{json:#}\n{errors}"));
        assert_eq!(again, resource.value, "{json:#}");
        // The same text in the two other formats says the same.
        for (name, text) in [
            ("a.json", json.to_string()),
            ("a.yaml", serde_saphyr::to_string(&json).unwrap()),
            ("a.toml", toml::to_string(&json).unwrap()),
        ] {
            let parsed =
                parse(&[Source::new(name, &text)]).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
            assert_eq!(parsed[0].value, resource.value, "{text}");
        }
    }
}
