//! Mistakes in what people wrote, and how they are shown.

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::format::Source;
use crate::node::{Position, Span};

/// One mistake.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// The field, such as `ports[0].protocol`; empty for a whole document.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
    source: Option<Source>,
    span: Option<Span>,
}

/// How [`Diagnostics::render`] draws source excerpts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without colours.
    Plain,
    /// With terminal colours.
    Coloured,
}

impl Diagnostic {
    pub(crate) fn new(
        source: Option<&Source>,
        span: Option<Span>,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { path: path.into(), message: message.into(), source: source.cloned(), span }
    }

    /// The file's name, if it came from a file.
    pub fn file(&self) -> Option<&str> {
        self.source.as_ref().map(|source| &*source.name)
    }

    /// Line and column, if it came from a file and the place is known.
    pub fn position(&self) -> Option<Position> {
        let (source, span) = (self.source.as_ref()?, self.span?);
        Some(Position::of(&source.text, span.start))
    }

    /// The mistake with an excerpt of the source, as a terminal shows it.
    pub fn render(&self, style: Style) -> String {
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Coloured => Renderer::styled(),
        };
        let title = match self.path.as_str() {
            "" => self.message.clone(),
            path => format!("{path}: {}", self.message),
        };
        let title = Level::ERROR.primary_title(title);
        match (&self.source, self.span) {
            (Some(source), Some(span)) => {
                let snippet = Snippet::source(&*source.text)
                    .path(&*source.name)
                    .annotation(AnnotationKind::Primary.span(visible(&source.text, span)));
                renderer.render(&[title.element(snippet)])
            }
            (Some(source), None) => {
                format!("{}\n --> {}", renderer.render(&[Group::with_title(title)]), source.name)
            }
            (None, _) => renderer.render(&[Group::with_title(title)]),
        }
    }
}

/// The part of `span` on its first line, at least one character where there is one.
fn visible(text: &str, span: Span) -> std::ops::Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(span.start);
    let line_end = text[start..].find('\n').map_or(text.len(), |length| start + length);
    let word_end = text[start..line_end]
        .find(|c: char| c.is_whitespace() || ":,]}".contains(c))
        .map_or(line_end, |length| start + length);
    let end = if span.end > span.start { floor(span.end).min(line_end) } else { word_end };
    start..end.max(start)
}

/// `file:line:column: path: message`, on one line.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            match self.position() {
                Some(Position { line, column }) => write!(f, "{}:{line}:{column}: ", source.name)?,
                None => write!(f, "{}: ", source.name)?,
            }
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Every mistake of one run, in the order of the files.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// All mistakes with source excerpts, as a terminal shows them.
    pub fn render(&self, style: Style) -> String {
        let shown: Vec<String> = self.0.iter().map(|diagnostic| diagnostic.render(style)).collect();
        shown.join("\n\n")
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One line per mistake.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(diagnostic, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
