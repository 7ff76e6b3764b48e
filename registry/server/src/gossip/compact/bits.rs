//! Numbers of which only the last bits are sent.

/// The most bits of a number that are sent.
pub(super) const MAX_WIDTH: u32 = 15;

/// Writes bits one after the other, the last byte filled up with zeros.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    bits: usize,
}

impl Writer {
    /// The last `width` bits of `number`.
    pub(super) fn put(&mut self, number: u64, width: u32) {
        for bit in (0..width).rev() {
            if self.bits.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let one = (number >> bit & 1) as u8;
            if let Some(last) = self.bytes.last_mut() {
                *last |= one << (7 - self.bits % 8);
            }
            self.bits += 1;
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads what a [`Writer`] wrote.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    bits: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, bits: 0 }
    }

    /// `None` at the end.
    pub(super) fn take(&mut self, width: u32) -> Option<u64> {
        let mut number = 0;
        for _ in 0..width {
            let byte = self.bytes.get(self.bits / 8)?;
            number = number << 1 | u64::from(byte >> (7 - self.bits % 8) & 1);
            self.bits += 1;
        }
        Some(number)
    }
}

/// The number nearest to `reference` whose last `width` bits are `low`: what was sent, if it was
/// less than 2^(`width` − 1) away. With no bits it is the reference.
pub(super) fn nearest(reference: u64, low: u64, width: u32) -> u64 {
    let span = 1 << width;
    let near = reference & !(span - 1) | low & (span - 1);
    if near > reference && near - reference >= span / 2 {
        near.checked_sub(span).unwrap_or(near)
    } else if near < reference && reference - near > span / 2 {
        near.checked_add(span).unwrap_or(near)
    } else {
        near
    }
}

/// How many bits tell a number from all others that are `apart` or less from a reference.
pub(super) fn width(apart: u64) -> u32 {
    65 - apart.leading_zeros()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_edges() {
        for (what, reference, sent, width, want) in [
            ("no bits", 77, 99, 0, 77),
            ("the same", 77, 77, 4, 77),
            ("a little more", 77, 83, 4, 83),
            ("a little less", 77, 70, 4, 70),
            ("half less is less", 77, 69, 4, 69),
            ("half more is not", 77, 85, 4, 69),
            ("near zero", 0, 7, 4, 7),
            ("below zero is above", 1, 15, 4, 15),
            ("near the end", u64::MAX, u64::MAX - 3, 4, u64::MAX - 3),
            ("over the end is below", u64::MAX - 1, 3, 4, u64::MAX - 12),
        ] {
            assert_eq!(nearest(reference, sent, width), want, "{what}");
        }
        for (apart, want) in [(0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (63, 7), (64, 8)] {
            assert_eq!(width(apart), want, "{apart}");
        }
    }

    proptest! {
        #[test]
        fn what_is_near_is_found(reference: u64, apart in 0u64..1 << 14, more: bool) {
            let sent = if more {
                reference.saturating_add(apart)
            } else {
                reference.saturating_sub(apart)
            };
            let width = width(apart);
            prop_assert!(width <= MAX_WIDTH);
            prop_assert_eq!(nearest(reference, sent & ((1 << width) - 1), width), sent);
        }

        #[test]
        fn bits_come_out_as_they_went_in(
            numbers in proptest::collection::vec((any::<u64>(), 0..=MAX_WIDTH), 0..100)
        ) {
            let mut writer = Writer::default();
            for (number, width) in &numbers {
                writer.put(*number, *width);
            }
            let bytes = writer.finish();
            let bits: u32 = numbers.iter().map(|(_, width)| width).sum();
            prop_assert_eq!(bytes.len(), bits.div_ceil(8) as usize);
            let mut reader = Reader::new(&bytes);
            for (number, width) in &numbers {
                prop_assert_eq!(reader.take(*width), Some(number & ((1 << width) - 1)));
            }
            prop_assert_eq!(reader.take(8), None);
        }
    }
}
