//! Label values as small integers.

use std::sync::{PoisonError, RwLock};

use hashbrown::HashMap;

/// A label value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Symbol(u32);

macro_rules! known {
    ($($name:ident = $index:literal, $text:literal;)*) => {
        impl Symbol {
            $(#[doc = concat!("`", $text, "`.")] pub(crate) const $name: Self = Self($index);)*
        }
        const KNOWN: &[&str] = &[$($text),*];
    };
}

known! {
    EMPTY = 0, "";
    UNKNOWN = 1, "unknown";
    OTHER = 2, "other";
    INBOUND = 3, "inbound";
    OUTBOUND = 4, "outbound";
    UNSPECIFIED = 5, "unspecified";
    ALLOWED = 6, "allowed";
    DENIED = 7, "denied";
    ENFORCED = 8, "enforced";
    SHADOW = 9, "shadow";
    RETRY = 10, "retry";
    SUCCESS = 11, "success";
    LIMIT = 12, "limit_exceeded";
    OVERFLOW = 13, "overflow";
    NO_FILTER_CHAIN = 14, "no_filter_chain_match";
    TLS = 15, "tls";
    RBAC = 16, "rbac";
    TIMEOUT = 17, "timeout";
    SENT = 18, "sent";
    FAILED = 19, "failed";
    FLOOD = 20, "flood";
    OVERLOAD = 21, "overload";
    PROXY_PROTOCOL = 22, "proxy_protocol";
    FOLLOWED = 23, "followed";
    BAD_LOCATION = 24, "bad_location";
    UNSAFE_SCHEME = 25, "unsafe_scheme";
    TOO_MANY_REDIRECTS = 26, "too_many_redirects";
    NO_ROUTE = 27, "no_route";
    PREDICATE = 28, "predicate";
}

/// Every label value seen; at most [`SYMBOLS_MAX`].
pub(crate) struct Symbols(RwLock<Inner>);

struct Inner {
    by_text: HashMap<String, Symbol>,
    texts: Vec<String>,
}

const SYMBOLS_MAX: usize = 1 << 16;

impl Symbols {
    /// With the known ones.
    pub(crate) fn new() -> Self {
        let texts: Vec<String> = KNOWN.iter().map(|text| (*text).to_owned()).collect();
        let by_text = (0..).map(Symbol).zip(&texts).map(|(symbol, text)| (text.clone(), symbol)).collect();
        Self(RwLock::new(Inner { by_text, texts }))
    }

    /// The symbol of `text`; [`Symbol::OTHER`] once there are too many.
    pub(crate) fn intern(&self, text: &str) -> Symbol {
        if let Some(symbol) = self.0.read().unwrap_or_else(PoisonError::into_inner).by_text.get(text) {
            return *symbol;
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(symbol) = inner.by_text.get(text) {
            return *symbol;
        }
        let Ok(index) = u32::try_from(inner.texts.len()) else { return Symbol::OTHER };
        if inner.texts.len() >= SYMBOLS_MAX {
            return Symbol::OTHER;
        }
        inner.texts.push(text.to_owned());
        inner.by_text.insert(text.to_owned(), Symbol(index));
        Symbol(index)
    }

    /// The symbol of `text`, if it has one.
    pub(crate) fn known(&self, text: &str) -> Option<Symbol> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_text.get(text).copied()
    }

    /// The text of `symbol`.
    pub(crate) fn text(&self, symbol: Symbol) -> String {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        usize::try_from(symbol.0).ok().and_then(|index| inner.texts.get(index)).cloned().unwrap_or_default()
    }
}

impl From<pillion_model::listener::Direction> for Symbol {
    fn from(direction: pillion_model::listener::Direction) -> Self {
        use pillion_model::listener::Direction;
        match direction {
            Direction::Inbound => Self::INBOUND,
            Direction::Outbound => Self::OUTBOUND,
            Direction::Unspecified => Self::UNSPECIFIED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_symbols_stand_at_their_place() {
        let symbols = Symbols::new();
        assert_eq!(symbols.text(Symbol::FAILED), "failed");
        assert_eq!(symbols.intern("denied"), Symbol::DENIED);
        let new = symbols.intern("orders.shop");
        assert_eq!(symbols.intern("orders.shop"), new);
        assert_eq!(symbols.text(new), "orders.shop");
    }
}
