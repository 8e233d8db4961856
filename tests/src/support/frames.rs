//! HTTP/2 frames as bytes, right or wrong (RFC 9113 section 4.1, RFC 7541).

/// The type `DATA`.
pub const DATA: u8 = 0;
/// The type `HEADERS`.
pub const HEADERS: u8 = 1;
/// The type `PRIORITY`.
pub const PRIORITY: u8 = 2;
/// The type `RST_STREAM`.
pub const RST_STREAM: u8 = 3;
/// The type `SETTINGS`.
pub const SETTINGS: u8 = 4;
/// The type `PING`.
pub const PING: u8 = 6;
/// The type `GOAWAY`.
pub const GOAWAY: u8 = 7;
/// The type `WINDOW_UPDATE`.
pub const WINDOW_UPDATE: u8 = 8;
/// The type `CONTINUATION`.
pub const CONTINUATION: u8 = 9;
/// The flag `END_STREAM`.
pub const END_STREAM: u8 = 1;
/// The flag `END_HEADERS`.
pub const END_HEADERS: u8 = 4;

/// A frame.
///
/// # Panics
///
/// If the payload does not fit into one.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// What a connection begins with: the preface and SETTINGS.
pub fn beginning(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut payload = Vec::new();
    for (id, value) in settings {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    bytes.extend(frame(SETTINGS, 0, 0, &payload));
    bytes
}

/// `:method`, `:scheme`, `:authority` and `:path` of a request.
pub fn block(post: bool, path: &str) -> Vec<u8> {
    let mut block = vec![if post { 0x83 } else { 0x82 }, 0x86];
    literal(&mut block, 1, "a");
    literal(&mut block, 4, path);
    block
}

/// A field whose name is in the static table, not to be kept.
fn literal(block: &mut Vec<u8>, name: u8, value: &str) {
    block.push(name);
    block.push(u8::try_from(value.len()).expect("a short value"));
    block.extend_from_slice(value.as_bytes());
}

/// A GET.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(false, path))
}

/// A POST whose body is still to come.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(true, path))
}

/// A field with its name, not to be kept, whatever both are.
///
/// # Panics
///
/// If one is longer than 16 KiB.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // RFC 7541 section 5.1, with a prefix of 7 bits.
        let length = text.len();
        if length < 127 {
            bytes.push(u8::try_from(length).expect("below 127"));
        } else {
            let rest = length - 127;
            assert!(rest < 1 << 14, "a field of {length} bytes");
            bytes.push(127);
            if rest < 128 {
                bytes.push(u8::try_from(rest).expect("below 128"));
            } else {
                bytes.push(0x80 | u8::try_from(rest & 0x7f).expect("seven bits"));
                bytes.push(u8::try_from(rest >> 7).expect("seven bits"));
            }
        }
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}
