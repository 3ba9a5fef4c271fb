//! Internet checksums changed by what changed, not computed anew.
//!
//! # Source
//! RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`. Words are taken as they stand in memory; one's complement sums do
//! not depend on byte order (RFC 1071, 2.B).

/// The sum of what was taken out of, and put into, checksummed bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    pub const ZERO: Self = Self(0);

    /// Returns what words add to a field that is zero yet.
    #[inline(always)]
    pub const fn sum(words: &[u32]) -> Self {
        let (mut sum, mut place) = (0, 0);
        while place < words.len() {
            sum += words[place] as u64;
            place += 1;
        }
        Self(sum)
    }

    /// Adds the replacement of four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn replace32(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Adds the replacement of sixteen bytes.
    #[inline(always)]
    #[must_use]
    pub const fn replace128(self, old: [u32; 4], new: [u32; 4]) -> Self {
        self.replace32(old[0], new[0]).replace32(old[1], new[1]).replace32(old[2], new[2]).replace32(old[3], new[3])
    }

    /// Adds the replacement of two bytes.
    #[inline(always)]
    #[must_use]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Joins two changes of the same bytes' checksum.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Returns the change as the kernel's checksum helpers take it: a one's complement sum of 32 bits.
    #[inline(always)]
    pub const fn wsum(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let twice = (once & 0xffff_ffff) + (once >> 32);
        twice as u32
    }

    /// Returns a checksum field with the change in it.
    #[inline(always)]
    pub const fn apply(self, check: u16) -> u16 {
        let sum = self.wsum() as u64 + !check as u64;
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, 4.1, written the slow way.
    fn computed(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn an_updated_checksum_equals_a_recomputed_one(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..60),
            word in any::<u32>(), half in any::<u16>(),
        ) {
            prop_assume!(bytes.iter().any(|&b| b != 0));
            let before = computed(&bytes);
            let old_word = u32::from_ne_bytes(bytes[4..8].try_into().unwrap());
            let old_half = u16::from_ne_bytes(bytes[10..12].try_into().unwrap());

            bytes[4..8].copy_from_slice(&word.to_ne_bytes());
            bytes[10..12].copy_from_slice(&half.to_ne_bytes());
            let updated = Delta::ZERO.replace32(old_word, word).replace16(old_half, half).apply(before);

            prop_assume!(bytes.iter().any(|&b| b != 0));
            prop_assert_eq!(updated, computed(&bytes));
        }

        #[test]
        fn putting_back_restores(check in any::<u16>(), old in any::<u32>(), new in any::<u32>()) {
            let there = Delta::ZERO.replace32(old, new).apply(check);
            let back = Delta::ZERO.replace32(new, old).apply(there);

            let same: Vec<u16> = if check == 0xffff || check == 0 { std::vec![0, 0xffff] } else { std::vec![check] };
            prop_assert!(same.contains(&back));
        }
    }
}
