//! File descriptors: as many as the system lets this process have.
//!
//! Most systems give a process a thousand unless it asks for more, and a server that counts on
//! fifty thousand connections finds out when it cannot open the file that it saves its state in.
//! So a process asks at its start, and takes fewer connections than there are descriptors.

use std::io;

/// Descriptors that are kept from connections, at least and at most. A guess: peers, files, the
/// admin port and name resolution of a process take some dozens.
const KEPT: std::ops::RangeInclusive<usize> = 64..=1024;

/// Raises the limit of open files to what may be had without rights; tells what it is now,
/// `usize::MAX` if there is none.
///
/// # Errors
/// If the system refuses what it said may be had.
#[cfg(unix)]
pub fn raise() -> io::Result<usize> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    let now = getrlimit(Resource::Nofile).current;
    Ok(now.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX)))
}

/// There is no such limit.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn raise() -> io::Result<usize> {
    Ok(usize::MAX)
}

/// Of `wanted` connections those that `limit` descriptors leave room for: a quarter is kept for
/// everything else.
pub fn room(wanted: usize, limit: usize) -> usize {
    let kept = (limit / 4).clamp(*KEPT.start(), *KEPT.end());
    wanted.min(limit.saturating_sub(kept).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_quarter_within_bounds() {
        for (wanted, limit, want) in [
            (50_000, usize::MAX, 50_000),
            (50_000, 65_536, 50_000),
            (50_000, 20_000, 18_976),
            (50_000, 1_024, 768),
            (50_000, 128, 64),
            (50_000, 10, 1),
            (100, 1_024, 100),
        ] {
            assert_eq!(room(wanted, limit), want, "{wanted} of {limit}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_limit_is_raised_to_what_may_be_had() {
        use rustix::process::{Resource, getrlimit};
        let now = raise().expect("allowed");
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(limit.current.is_none_or(|n| n == now as u64));
    }
}
