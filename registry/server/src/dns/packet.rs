//! Bytes to a question, and an answer to bytes that fit.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode, emit_message_parts},
    rr::{DNSClass, Record},
    serialize::binary::BinEncoder,
};

/// Bytes before the question.
const HEADER: usize = 12;
/// The largest question that is read: a name of 255 bytes and its options.
pub(super) const MAX_QUESTION: usize = 4096;
/// The largest answer without EDNS. Source: RFC 1035 §4.2.1.
const PLAIN_UDP: u16 = 512;

/// A question that can be answered.
#[derive(Debug)]
pub(super) struct Question {
    /// The answer's frame: id, flags, question and, where the asker has it, EDNS.
    pub(super) frame: Message,
    pub(super) query: Query,
    /// Bytes that the asker takes over UDP.
    pub(super) payload: u16,
}

/// What a packet is.
#[derive(Debug)]
pub(super) enum Read {
    Question(Box<Question>),
    /// Cannot be answered, but deserves to be told.
    Refused(Box<Message>),
    /// An answer, or nothing at all. To reply would be to take part in a loop.
    Drop,
}

/// Reads a packet; the header alone decides whether the rest is looked at.
pub(super) fn read(packet: &[u8], udp_payload: u16) -> Read {
    if packet.len() < HEADER || packet.len() > MAX_QUESTION {
        return Read::Drop;
    }
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    if word(2) & 0x8000 != 0 {
        return Read::Drop;
    }
    let op_code = OpCode::from_u8((packet[2] >> 3) & 0xf);
    let refused = |code| {
        let mut frame = Message::response(word(0), op_code);
        frame.metadata.recursion_desired = word(2) & 0x0100 != 0;
        frame.metadata.response_code = code;
        Read::Refused(Box::new(frame))
    };
    if op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    // One question, no records, and EDNS with a cookie or a signature at most: also what bounds
    // the memory that reading the rest may take.
    if word(4) != 1 || word(6) != 0 || word(8) != 0 || word(10) > 2 {
        return refused(ResponseCode::FormErr);
    }
    let Ok(asked) = Message::from_vec(packet) else {
        return refused(ResponseCode::FormErr);
    };
    let Some(query) = asked.queries.first().cloned() else {
        return refused(ResponseCode::FormErr);
    };
    let mut frame = Message::response(asked.metadata.id, op_code);
    frame.metadata.message_type = MessageType::Response;
    frame.metadata.recursion_desired = asked.metadata.recursion_desired;
    frame.metadata.checking_disabled = asked.metadata.checking_disabled;
    frame.add_query(query.clone());
    let mut payload = PLAIN_UDP;
    if let Some(edns) = &asked.edns {
        payload = edns.max_payload().clamp(PLAIN_UDP, udp_payload);
        let mut ours = Edns::new();
        ours.set_max_payload(udp_payload);
        frame.set_edns(ours);
        if edns.version() != 0 {
            frame.metadata.response_code = ResponseCode::BADVERS;
            return Read::Refused(Box::new(frame));
        }
    }
    if query.query_class != DNSClass::IN && query.query_class != DNSClass::ANY {
        frame.metadata.response_code = ResponseCode::Refused;
        return Read::Refused(Box::new(frame));
    }
    Read::Question(Box::new(Question {
        frame,
        query,
        payload,
    }))
}

/// How an answer may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// What was left out can be had over TCP: say so.
    Truncated,
    /// There is nothing larger: give what fits.
    Silently,
}

/// Writes `answer` in at most `limit` bytes: without additional records if need be, which are only
/// an offer (RFC 2181 §9), then with fewer answers.
pub(super) fn write(answer: &Message, limit: u16, cut: Cut) -> Vec<u8> {
    let (answers, additionals) = (answer.answers.len(), answer.additionals.len());
    let all = encode(answer, answers, additionals, false);
    if let Some(bytes) = all.filter(|bytes| bytes.len() <= usize::from(limit)) {
        return bytes;
    }
    let fits = |answers: usize, additionals: usize, truncated: bool| {
        let bytes = encode(answer, answers, additionals, truncated)?;
        (bytes.len() <= usize::from(limit)).then_some(bytes)
    };
    if fits(answers, 0, false).is_some() {
        let most = largest(additionals, |n| fits(answers, n, false).is_some());
        return fits(answers, most, false).unwrap_or_default();
    }
    let truncated = cut == Cut::Truncated;
    let most = largest(answers, |n| fits(n, 0, truncated).is_some());
    fits(most, 0, truncated).unwrap_or_default()
}

/// The largest `n` up to `max` that is good, where all below a good one are.
fn largest(max: usize, good: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, max);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if good(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

fn encode(
    answer: &Message,
    answers: usize,
    additionals: usize,
    truncated: bool,
) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::MAX);
    let mut metadata = answer.metadata;
    metadata.truncation = truncated;
    let none: [Record; 0] = [];
    // Of a cut answer nothing but its own records.
    let authorities = if truncated {
        &none[..]
    } else {
        &answer.authorities
    };
    let header = emit_message_parts(
        &metadata,
        &mut answer.queries.iter(),
        &mut answer.answers[..answers].iter(),
        &mut authorities.iter(),
        &mut answer.additionals[..additionals].iter(),
        answer.edns.as_ref(),
        None,
        &mut encoder,
    );
    // The encoder marks what it had to leave out itself.
    let whole = header.is_ok_and(|header| header.metadata.truncation == truncated);
    whole.then_some(bytes)
}
