//! Log-linear histograms of times: eight buckets to each power of two, so that a bucket is at most an
//! eighth wider than where it begins.

/// Number of buckets; the last one holds everything from 128 seconds on.
pub const BUCKETS: usize = 232;

/// Nanoseconds, as a power of two, below which nothing is told apart.
const GRAIN: u32 = 6;
/// Buckets to a power of two, as a power of two.
const PARTS: u32 = 3;

/// The bucket of a time in nanoseconds.
#[inline(always)]
pub const fn bucket(nanoseconds: u64) -> usize {
    let grains = nanoseconds >> GRAIN;
    if grains < 1 << PARTS {
        return grains as usize;
    }
    if grains >> 31 != 0 {
        return BUCKETS - 1;
    }
    // `ilog2` would bring a panic with it, which no verifier lets pass.
    let Some(octave) = (grains as u32).checked_ilog2() else { return 0 };
    let shift = octave - PARTS;
    let part = (grains >> shift) as u32 & ((1 << PARTS) - 1);
    (((shift + 1) << PARTS) + part) as usize
}

/// The shortest time in a bucket, in nanoseconds.
pub const fn lowest(bucket: usize) -> u64 {
    let (octave, part) = ((bucket >> PARTS) as u32, (bucket & ((1 << PARTS) - 1)) as u64);
    match octave {
        0 => part << GRAIN,
        _ => (part + (1 << PARTS)) << (octave - 1 + GRAIN),
    }
}

/// The longest time in a bucket, in nanoseconds; of the last one, what the next would begin with.
pub const fn highest(bucket: usize) -> u64 {
    lowest(bucket + 1) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_adjoin_and_are_narrow() {
        assert_eq!(lowest(0), 0);
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(lowest(at)), at, "{at}");
            assert_eq!(bucket(highest(at)), at, "{at}");
            assert_eq!(highest(at) + 1, lowest(at + 1), "{at}");
            if at >= 8 {
                let width = highest(at) - lowest(at) + 1;
                assert!(width * 8 <= lowest(at), "{at}: {width} from {}", lowest(at));
            }
        }
    }

    #[test]
    fn the_last_bucket_takes_all_that_is_longer() {
        assert_eq!(lowest(BUCKETS - 1), 15 << 33);
        for time in [lowest(BUCKETS - 1), 1 << 37, u64::MAX] {
            assert_eq!(bucket(time), BUCKETS - 1, "{time}");
        }
    }

    #[test]
    fn times_fall_where_they_should() {
        for time in [0, 63, 64, 1000, 10_000, 1_000_000, 300_000_000, 60_000_000_000] {
            let at = bucket(time);
            assert!(lowest(at) <= time && time <= highest(at), "{time} in {at}");
        }
    }
}
