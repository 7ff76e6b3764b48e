//! FarmHash `Fingerprint32`: the hash whose values Ringpop's rings are made of.
//!
//! A ring is only shared if every member computes the same points, today and after the next
//! release, so the hash is part of the wire format. The one crate that has it has not been
//! touched since 2016; these are its 120 lines, held to golden values and, in the tests, to it.
//!
//! # What it does not do
//! Resist an attacker who picks the keys: it is a fingerprint, not a keyed hash.
//!
//! # Source
//! Pike and Alakuijala, FarmHash 1.1 (Google, 2014), `farmhashmk::Hash32`, which
//! `util::Fingerprint32` promises never to change.

const C1: u32 = 0xcc9e_2d51;
const C2: u32 = 0x1b87_3593;

/// The 32-bit fingerprint of `bytes`. About a nanosecond for four bytes; no allocation.
pub fn fingerprint32(bytes: &[u8]) -> u32 {
    match bytes.len() {
        0..=4 => hash_0_to_4(bytes),
        5..=12 => hash_5_to_12(bytes),
        13..=24 => hash_13_to_24(bytes),
        _ => hash_long(bytes),
    }
}

fn fetch(bytes: &[u8], at: usize) -> u32 {
    let word = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(word)
}

fn fmix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

fn scramble(a: u32) -> u32 {
    a.wrapping_mul(C1).rotate_right(17).wrapping_mul(C2)
}

fn stir(h: u32) -> u32 {
    h.rotate_right(19).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

fn mur(a: u32, h: u32) -> u32 {
    stir(h ^ scramble(a))
}

fn hash_0_to_4(bytes: &[u8]) -> u32 {
    let (mut b, mut c) = (0u32, 9u32);
    for byte in bytes {
        // The original reads `signed char`.
        let signed = i32::from(byte.cast_signed()).cast_unsigned();
        b = b.wrapping_mul(C1).wrapping_add(signed);
        c ^= b;
    }
    fmix(mur(b, mur(bytes.len() as u32, c)))
}

fn hash_5_to_12(bytes: &[u8]) -> u32 {
    let len = bytes.len();
    let d = (len as u32).wrapping_mul(5);
    let a = (len as u32).wrapping_add(fetch(bytes, 0));
    let b = d.wrapping_add(fetch(bytes, len - 4));
    let c = 9u32.wrapping_add(fetch(bytes, (len >> 1) & 4));
    fmix(mur(c, mur(b, mur(a, d))))
}

fn hash_13_to_24(bytes: &[u8]) -> u32 {
    let len = bytes.len();
    let mut a = fetch(bytes, (len >> 1) - 4);
    let b = fetch(bytes, 4);
    let c = fetch(bytes, len - 8);
    let d = fetch(bytes, len >> 1);
    let e = fetch(bytes, 0);
    let f = fetch(bytes, len - 4);
    let mut h = d.wrapping_mul(C1).wrapping_add(len as u32);
    a = a.rotate_right(12).wrapping_add(f);
    h = mur(c, h).wrapping_add(a);
    a = a.rotate_right(3).wrapping_add(c);
    h = mur(e, h).wrapping_add(a);
    a = a.wrapping_add(f).rotate_right(12).wrapping_add(d);
    h = mur(b, h).wrapping_add(a);
    fmix(h)
}

fn hash_long(bytes: &[u8]) -> u32 {
    let len = bytes.len();
    let tail = |back: usize| scramble(fetch(bytes, len - back));
    let mut h = len as u32;
    let mut g = C1.wrapping_mul(h);
    let mut f = g;
    h = stir(stir(h ^ tail(4)) ^ tail(16));
    g = stir(stir(g ^ tail(8)) ^ tail(12));
    f = f.wrapping_add(tail(20)).rotate_right(19).wrapping_add(113);
    for chunk in 0..(len - 1) / 20 {
        let at = chunk * 20;
        let [a, b, c, d, e] = [0, 4, 8, 12, 16].map(|offset| fetch(bytes, at + offset));
        h = mur(d, h.wrapping_add(a)).wrapping_add(e);
        g = mur(c, g.wrapping_add(b)).wrapping_add(a);
        f = mur(b.wrapping_add(e.wrapping_mul(C1)), f.wrapping_add(c)).wrapping_add(d);
        f = f.wrapping_add(g);
        g = g.wrapping_add(f);
    }
    let twice = |x: u32| {
        let once = x.rotate_right(11).wrapping_mul(C1);
        once.rotate_right(17).wrapping_mul(C1)
    };
    (g, f) = (twice(g), twice(f));
    for other in [g, f] {
        h = stir(h.wrapping_add(other))
            .rotate_right(17)
            .wrapping_mul(C1);
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_values() {
        let x = "x".repeat(25);
        let y = "y".repeat(64);
        for (text, want) in [
            ("", 3_696_677_242),
            ("a", 1_016_544_589),
            ("hello", 2_039_911_270),
            ("abcdefghijkl", 1_769_366_226),
            ("abcdefghijklm", 1_792_790_684),
            ("127.0.0.1:30000", 1_854_233_723),
            (&x, 35_736_989),
            (&y, 720_448_822),
        ] {
            assert_eq!(fingerprint32(text.as_bytes()), want, "{text:?}");
        }
    }

    /// The crate reads the bytes of the shortest keys as unsigned, where Google's code and the Go
    /// code that Ringpop uses read them as signed: it is an oracle for ASCII and for longer keys.
    fn oracle(bytes: &[u8]) -> Option<u32> {
        let differs = bytes.len() <= 4 && !bytes.is_ascii();
        (!differs).then(|| farmhash::fingerprint32(bytes))
    }

    #[test]
    fn every_length_equals_the_crate_that_nobody_keeps() {
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * 167 + 13) as u8).collect();
        for len in 0..bytes.len() {
            let part = &bytes[..len];
            assert!(
                oracle(part).is_none_or(|want| fingerprint32(part) == want),
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn equals_the_crate_that_nobody_keeps(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(want) = oracle(&bytes) {
                prop_assert_eq!(fingerprint32(&bytes), want);
            }
        }
    }
}
