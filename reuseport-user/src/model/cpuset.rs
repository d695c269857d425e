//! Sets of CPUs, and the kernel's list format (`0-3,8,10-11`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Cpu;

/// A set of CPU ids, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CpuSet(BTreeSet<Cpu>);

/// Most CPUs a list may name: the kernel's own `NR_CPUS` ceiling, so that `0-4294967295` is refused
/// instead of filling memory.
const LIMIT: Cpu = 8192;

/// A list that is not in the kernel's format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuSetError {
    /// Neither a number nor a range.
    #[error("`{0}` is not a CPU number or range (expected a list such as 0-3,8)")]
    Malformed(String),
    /// `3-1`.
    #[error("`{0}` is a range whose end lies before its start")]
    Backwards(String),
    /// An id that no Linux kernel can have.
    #[error("CPU {0} is beyond the largest id a Linux kernel can have ({max})", max = LIMIT - 1)]
    TooLarge(Cpu),
}

impl CpuSet {
    /// Whether `cpu` is a member.
    pub fn contains(&self, cpu: Cpu) -> bool {
        self.0.contains(&cpu)
    }

    /// Adds `cpu`.
    pub fn insert(&mut self, cpu: Cpu) {
        self.0.insert(cpu);
    }

    /// Number of CPUs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The CPUs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Cpu> + '_ {
        self.0.iter().copied()
    }

    /// The lowest CPU.
    pub fn first(&self) -> Option<Cpu> {
        self.0.first().copied()
    }

    /// CPUs in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    /// Whether every CPU of `self` is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<Cpu> for CpuSet {
    fn from_iter<I: IntoIterator<Item = Cpu>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl<const N: usize> From<[Cpu; N]> for CpuSet {
    fn from(cpus: [Cpu; N]) -> Self {
        cpus.into_iter().collect()
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    /// Parses the kernel's list format. An empty (or blank) list is the empty set.
    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        let mut cpus = BTreeSet::new();
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self(cpus));
        }
        for part in text.split(',') {
            let part = part.trim();
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let number = |digits: &str| {
                // `u32::from_str` takes a leading plus, the kernel does not.
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let parsed = plain.then(|| digits.parse::<Cpu>().unwrap_or(Cpu::MAX));
                parsed.ok_or_else(|| CpuSetError::Malformed(part.to_owned()))
            };
            let (low, high) = (number(low)?, number(high)?);
            if high < low {
                return Err(CpuSetError::Backwards(part.to_owned()));
            }
            if high >= LIMIT {
                return Err(CpuSetError::TooLarge(high));
            }
            cpus.extend(low..=high);
        }
        Ok(Self(cpus))
    }
}

/// The kernel's list format, shortest form.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(low) = cpus.next() {
            let mut high = low;
            while cpus.next_if_eq(&(high + 1)).is_some() {
                high += 1;
            }
            match high - low {
                0 => write!(f, "{separator}{low}")?,
                _ => write!(f, "{separator}{low}-{high}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_kernels_lists() {
        for (text, expected) in [
            ("", vec![]),
            ("\n", vec![]),
            ("0", vec![0]),
            ("0-3\n", vec![0, 1, 2, 3]),
            ("0-1,4,6-7", vec![0, 1, 4, 6, 7]),
            ("5,1,1-2", vec![1, 2, 5]),
        ] {
            assert_eq!(text.parse(), Ok(expected.into_iter().collect::<CpuSet>()), "{text:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_list() {
        let malformed = |text: &str| Err(CpuSetError::Malformed(text.to_owned()));
        for (text, part) in [
            ("a", "a"),
            ("0,,1", ""),
            ("-1", "-1"),
            ("1-", "1-"),
            ("+1", "+1"),
            ("0x1", "0x1"),
            ("1-2-3", "1-2-3"),
        ] {
            assert_eq!(text.parse::<CpuSet>(), malformed(part), "{text:?}");
        }
        assert_eq!("3-1".parse::<CpuSet>(), Err(CpuSetError::Backwards("3-1".into())));
        assert_eq!("99999".parse::<CpuSet>(), Err(CpuSetError::TooLarge(99999)));
        assert_eq!("0-4294967296".parse::<CpuSet>(), Err(CpuSetError::TooLarge(u32::MAX)));
    }

    proptest! {
        #[test]
        fn what_it_writes_it_reads(cpus in prop::collection::btree_set(0u32..LIMIT, 0..64)) {
            let set = CpuSet(cpus);
            prop_assert_eq!(set.to_string().parse(), Ok(set.clone()));
            let json = serde_json::to_string(&set).unwrap();
            prop_assert_eq!(serde_json::from_str::<CpuSet>(&json).unwrap(), set);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9,\\-+x ]{0,24}") {
            let _: Result<CpuSet, _> = text.parse();
        }
    }
}
