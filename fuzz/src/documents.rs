//! What is read by a function: join tokens and documents of resources.

use pillion_config::{Format, Source};
use pillion_net::bootstrap::JoinToken;

/// A token is read or refused.
pub(crate) fn token(input: &[u8]) -> Result<(), String> {
    match String::from_utf8_lossy(input).parse::<JoinToken>() {
        Err(error) if error.to_string().is_empty() => Err("it was refused without a word".to_owned()),
        Ok(token) if token.to_string().parse() != Ok(token.clone()) => Err(format!("{token} is another")),
        _ => Ok(()),
    }
}

/// An Envoy bootstrap is read or refused, with the place of what is refused.
pub(crate) fn bootstrap(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let Ok(document) = pillion_config::document::parse(&text, "input.yaml") else { return Ok(()) };
    match pillion_xds::bootstrap::read_bootstrap(&document.value) {
        Err(refused) if refused.problems.is_empty() => Err("it was refused without a word".to_owned()),
        _ => Ok(()),
    }
}

/// A document is read or refused, in each format.
pub(crate) fn config(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    for format in [Format::Yaml, Format::Json, Format::Toml] {
        let source = Source { name: "input".into(), text: (&*text).into(), format };
        if let Err(mistakes) = pillion_config::parse(&[source])
            && mistakes.to_string().is_empty()
        {
            return Err(format!("{format:?} was refused without a word"));
        }
    }
    Ok(())
}
