//! The `date` of responses, written once a second.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BufMut as _;

/// What was written last, and in which second.
struct Written {
    second: u64,
    line: Vec<u8>,
}

thread_local! {
    static WRITTEN: RefCell<Written> = const { RefCell::new(Written { second: 0, line: Vec::new() }) };
}

/// Puts the header `date` (RFC 9110 section 6.6.1), with its line's end.
pub(crate) fn put_date(out: &mut Vec<u8>) {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    WRITTEN.with_borrow_mut(|written| {
        if written.second != second {
            let date = httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(second));
            written.second = second;
            written.line.clear();
            // Writing into memory does not fail.
            let _ = write!(written.line, "date: {date}\r\n");
        }
        out.put_slice(&written.line);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_http_has_it() {
        let mut out = Vec::new();
        put_date(&mut out);
        let line = String::from_utf8(out).expect("text");
        let date = line.strip_prefix("date: ").and_then(|rest| rest.strip_suffix("\r\n")).expect("a line");
        let told = httpdate::parse_http_date(date).expect("a date");
        assert!(SystemTime::now().duration_since(told).expect("not later") < Duration::from_secs(5));
    }
}
