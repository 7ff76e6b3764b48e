//! Header values that are small numbers, which nearly every call carries.

use http::HeaderValue;

/// The digits of `n`; those of a few seconds are made when this is compiled, because a value that
/// must be allocated costs a call more than a policy.
pub(super) fn number(n: u64) -> HeaderValue {
    const SHORT: usize = 10_000;
    static DIGITS: [[u8; 4]; SHORT] = {
        let mut all = [[b'0'; 4]; SHORT];
        let mut n = 0;
        while n < SHORT {
            let (mut rest, mut at) = (n, 4);
            while at > 0 {
                at -= 1;
                all[n][at] = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            n += 1;
        }
        all
    };
    let Some(digits) = usize::try_from(n).ok().and_then(|n| DIGITS.get(n)) else {
        return long(n);
    };
    let zeros = match n {
        0..10 => 3,
        10..100 => 2,
        100..1000 => 1,
        _ => 0,
    };
    let digits = std::str::from_utf8(digits.get(zeros..).unwrap_or_default());
    HeaderValue::from_static(digits.expect("digits are text"))
}

/// The same of any number. `HeaderValue::from` allocates twice: its buffer is not as long as its
/// text.
fn long(mut n: u64) -> HeaderValue {
    let mut text = [b'0'; 20];
    let mut start = text.len() - 1;
    for (at, digit) in text.iter_mut().enumerate().rev() {
        *digit = b'0' + (n % 10) as u8;
        start = at;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    let digits = text.get(start..).unwrap_or_default();
    HeaderValue::from_bytes(digits).expect("digits are a header value")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_digits_of_a_number_are_its_own() {
        for n in (0..=10_001).chain([99_999, u64::MAX]) {
            assert_eq!(number(n), n.to_string());
            assert_eq!(long(n), n.to_string());
        }
    }
}
