//! String, number and header matchers, as Envoy's `type.matcher.v3` and `HeaderMatcher` define them.

use std::net::IpAddr;

use crate::metadata::Fields;

/// Matches a text. Envoy: `StringMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct StringMatcher {
    /// What to compare with.
    pub pattern: Pattern,
    /// Compare without regard to ASCII case; has no effect on a regex.
    pub ignore_case: bool,
}

/// The kinds of comparison. Empty prefix, suffix or contains patterns are refused by the decoder.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// The whole text.
    Exact(String),
    /// The beginning.
    Prefix(String),
    /// The end.
    Suffix(String),
    /// Anywhere.
    Contains(String),
    /// The whole text, by regular expression.
    Regex(Regex),
}

/// A regular expression that matches a whole text (Envoy's `safe_regex`), compiled once.
#[derive(Clone, Debug)]
pub struct Regex {
    source: String,
    compiled: regex::bytes::Regex,
}

/// Largest compiled program, in bytes.
const REGEX_SIZE_MAX: usize = 1 << 20;

impl Regex {
    /// Compiles `source`; it will have to match the whole text.
    ///
    /// # Errors
    ///
    /// The regex crate's message: syntax, or a program above 1 MiB.
    pub fn new(source: &str) -> Result<Self, String> {
        let compiled = regex::bytes::RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(REGEX_SIZE_MAX)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { source: source.to_owned(), compiled })
    }

    /// The expression as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the whole of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.compiled.is_match(text)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl StringMatcher {
    /// A case-sensitive comparison with the whole text.
    pub fn exact(text: impl Into<String>) -> Self {
        Self { pattern: Pattern::Exact(text.into()), ignore_case: false }
    }

    /// A case-sensitive comparison with the beginning.
    pub fn prefix(text: impl Into<String>) -> Self {
        Self { pattern: Pattern::Prefix(text.into()), ignore_case: false }
    }

    /// Whether `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.is_match_bytes(text.as_bytes())
    }

    /// Whether `text`, which need not be UTF-8, matches.
    pub fn is_match_bytes(&self, text: &[u8]) -> bool {
        let same = |a: &[u8], b: &[u8]| if self.ignore_case { a.eq_ignore_ascii_case(b) } else { a == b };
        match &self.pattern {
            Pattern::Exact(want) => same(text, want.as_bytes()),
            Pattern::Prefix(want) => text.get(..want.len()).is_some_and(|head| same(head, want.as_bytes())),
            Pattern::Suffix(want) => {
                text.len().checked_sub(want.len()).is_some_and(|start| same(&text[start..], want.as_bytes()))
            }
            Pattern::Contains(want) => {
                want.is_empty() || text.windows(want.len()).any(|part| same(part, want.as_bytes()))
            }
            Pattern::Regex(regex) => regex.is_match(text),
        }
    }
}

/// Matches one request header. Envoy: `HeaderMatcher`.
///
/// A missing header never matches, even inverted, except an inverted presence test and
/// `treat_missing_as_empty`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatcher {
    /// Lower-case name; `:authority`, `:path`, `:method` and `:scheme` name the request line's parts
    /// and `host` is an alias of `:authority`.
    pub name: String,
    /// What the value must be.
    pub value: HeaderValueMatch,
    /// Turns the result around.
    pub invert: bool,
    /// A missing header counts as an empty one.
    pub treat_missing_as_empty: bool,
}

/// What a [`HeaderMatcher`] wants of the value.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValueMatch {
    /// Present (`true`) or absent (`false`).
    Present(bool),
    /// The value matches.
    Text(StringMatcher),
    /// The value is a whole number in `start..end`.
    Range {
        /// First value that matches.
        start: i64,
        /// First value that no longer matches.
        end: i64,
    },
}

/// Matches the first value of one query parameter. Envoy: `QueryParameterMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatcher {
    /// The parameter's name, compared as is.
    pub name: String,
    /// What the value must be; `None`: present with any value.
    pub value: Option<StringMatcher>,
}

/// An address range: `10.0.0.0/8`. Envoy: `CidrRange`.
pub type Cidr = ipnet::IpNet;

/// Whether `address` is in `range`; IPv4 addresses mapped into IPv6 count as IPv4.
pub fn cidr_contains(range: &Cidr, address: IpAddr) -> bool {
    range.contains(&address.to_canonical())
}

/// What matchers read of a request: implemented by the proxy over its own head, and by `explain`.
///
/// `path` is the one normalised path that is both routed and authorised, without query and
/// fragment.
pub trait RequestView {
    /// The method, such as `GET`.
    fn method(&self) -> &str;
    /// The normalised path, without query.
    fn path(&self) -> &str;
    /// The query, without `?`; `None` without one.
    fn query(&self) -> Option<&str>;
    /// `:authority` or `Host`, as sent.
    fn authority(&self) -> &str;
    /// `http` or `https`.
    fn scheme(&self) -> &str;
    /// Calls `each` with every value of header `name` (lower case, never a pseudo-header).
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8]));
    /// What a filter has found out about the request.
    fn metadata(&self, _filter: &str) -> Option<&Fields> {
        None
    }
}

impl HeaderMatcher {
    /// Whether `request` matches: of several values of a header one suffices, in routes and policies
    /// alike.
    pub fn is_match(&self, request: &dyn RequestView) -> bool {
        let mut path_and_query;
        let pseudo: Option<&str> = match self.name.as_str() {
            ":authority" | "host" => Some(request.authority()),
            ":method" => Some(request.method()),
            ":scheme" => Some(request.scheme()),
            ":path" => Some(match request.query() {
                None => request.path(),
                Some(query) => {
                    path_and_query = String::with_capacity(request.path().len() + query.len() + 1);
                    path_and_query.push_str(request.path());
                    path_and_query.push('?');
                    path_and_query.push_str(query);
                    &path_and_query
                }
            }),
            _ => None,
        };
        if let Some(value) = pseudo {
            return self.conclude(Some(self.value.is_match(value.as_bytes())));
        }
        let (mut any, mut matched) = (false, false);
        request.header(&self.name, &mut |value| {
            any = true;
            matched |= self.value.is_match(value);
        });
        self.conclude(any.then_some(matched))
    }

    /// `None`: the header is missing.
    fn conclude(&self, matched: Option<bool>) -> bool {
        match (matched, &self.value) {
            (None, HeaderValueMatch::Present(want)) if !self.treat_missing_as_empty => *want == self.invert,
            (_, HeaderValueMatch::Present(want)) => *want != self.invert,
            (Some(matched), _) => matched != self.invert,
            (None, _) if self.treat_missing_as_empty => self.value.is_match(b"") != self.invert,
            (None, _) => false,
        }
    }
}

impl HeaderValueMatch {
    fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(want) => *want,
            Self::Text(matcher) => matcher.is_match_bytes(value),
            Self::Range { start, end } => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        }
    }
}

impl QueryMatcher {
    /// Whether the first parameter of this name matches.
    pub fn is_match(&self, query: Option<&str>) -> bool {
        let Some(query) = query else { return false };
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if name == self.name {
                return self.value.as_ref().is_none_or(|matcher| matcher.is_match(value));
            }
        }
        false
    }
}
