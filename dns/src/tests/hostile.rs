//! What is no question, and what is hardly one.

use proptest::prelude::*;

use super::*;
use crate::encode::{cut, edns, fits};
use crate::question::Unreadable;

/// How a message is met: `None` is not answered, `Some` is the code.
fn met(message: Vec<u8>) -> Option<ResponseCode> {
    match read(message, client(), Transport::Udp) {
        Ok(request) => Some(Question::of(&request).err().unwrap_or(ResponseCode::NoError)),
        Err(Unreadable::Ignore) => None,
        Err(Unreadable::Refuse(_, code)) => Some(code),
    }
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let good = ask("big.mesh.internal.", RecordType::A, Some(1232));
    let change = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    let mut two_opts = good.clone();
    let opt = two_opts[two_opts.len() - 11..].to_vec();
    two_opts.extend_from_slice(&opt);
    two_opts[11] = 2;
    let (form, not_a_question) = (Some(ResponseCode::FormErr), Some(ResponseCode::NotImp));
    for (case, message, want) in [
        ("a question", good.clone(), Some(ResponseCode::NoError)),
        ("nothing", Vec::new(), None),
        ("half a header", good[..11].to_vec(), None),
        ("a response", change(2, 0x80), None),
        ("a notification", change(2, 0x20), not_a_question),
        ("no question", change(5, 0), form),
        ("two questions", change(5, 2), form),
        ("very many questions", change(4, 0xff), form),
        ("a name that points", change(12, 0xc0), form),
        ("a label too long", change(12, 0x40), form),
        ("cut within the name", good[..14].to_vec(), form),
        ("cut within OPT", good[..good.len() - 3].to_vec(), form),
        ("two OPTs", two_opts, form),
    ] {
        assert_eq!(met(message), want, "{case}");
    }
}

/// Checks what a message gets, if it is a question: an answer within the client's size that can be
/// read again.
fn check(message: Vec<u8>, transport: Transport) -> Result<(), TestCaseError> {
    let response = message.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let Ok(request) = read(message, client(), transport) else { return Ok(()) };
    prop_assert!(!response, "a response is answered");
    let Ok(question) = Question::of(&request) else { return Ok(()) };
    if let Reply::Now(Outcome::Answer(answer)) = Fixed.answer(&question) {
        let note = Note::new(Reason::Other, "x".repeat(300));
        let edns = edns(&request, [note.option()]);
        let bytes = cut(&question, &answer, edns.as_ref());
        prop_assert!(bytes.len() <= question.size_max());
        let read = Message::from_vec(&bytes);
        prop_assert!(read.is_ok(), "{read:?}");
        prop_assert!(!fits(&question, &answer, edns.as_ref()) || bytes[2] & 0x02 == 0);
    }
    Ok(())
}

/// A label of any bytes, rather of plain ones.
fn label() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(proptest::char::range('A', 'z').prop_map(|c| c as u8), 1..12),
        1 => proptest::collection::vec(any::<u8>(), 1..64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), tcp in any::<bool>()) {
        check(bytes, if tcp { Transport::Tcp } else { Transport::Udp })?;
    }

    #[test]
    fn damaged_questions_get_bounded_answers(
        at in 0_usize..60, value in any::<u8>(), cut in 0_usize..60, edns in any::<Option<u16>>()
    ) {
        let mut message = ask("big.mesh.internal.", RecordType::A, edns);
        let len = message.len();
        message[at % len] = value;
        message.truncate(len - cut % len);
        check(message, Transport::Udp)?;
    }

    #[test]
    fn questions_are_read_as_they_were_written(
        labels in proptest::collection::vec(label(), 0..6),
        kind in any::<u16>(),
        edns in any::<Option<u16>>(),
    ) {
        let Ok(name) = Name::from_labels(labels.iter().map(|label| &label[..])) else { return Ok(()) };
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name, RecordType::from(kind)));
        if let Some(payload) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let bytes = message.to_vec().expect("encodes");
        let request = read(bytes, client(), Transport::Udp).expect("a request");
        let question = Question::of(&request).expect("a question");
        prop_assert_eq!(question.kind, RecordType::from(kind));
        let found: Vec<&str> = question.name.as_str().split('.').filter(|label| !label.is_empty()).collect();
        prop_assert_eq!(found.len(), labels.len());
        for (found, want) in found.into_iter().zip(&labels) {
            if want.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') {
                let want = String::from_utf8_lossy(want).to_lowercase();
                prop_assert_eq!(found, want.as_str());
            }
        }
        prop_assert_eq!(question.size_max(), edns.map_or(512, |payload| usize::from(payload).clamp(512, 1232)));
    }
}
