//! All chance of a simulated world, from one seed (SplitMix64, Steele, Lea and Flood 2014).

/// A stream of numbers. Two with the same seed say the same.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for one purpose: what one part of the world draws does not move the others.
    pub(crate) fn apart(&self, purpose: &str) -> Self {
        let mixed = purpose.bytes().fold(self.0 ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut dice = Self(mixed);
        dice.next();
        dice
    }

    #[allow(clippy::should_implement_trait, reason = "it is no iterator: it never ends and is never collected")]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True so many times in a thousand.
    pub(crate) fn permille(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }

    /// One of a slice that has any.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let at = self.below(of.len() as u64);
        of.get(usize::try_from(at).unwrap_or(0))
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.next().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_do_not_move_each_other() {
        let mut one = Dice::new(7);
        let mut other = Dice::new(7);
        let first: Vec<u64> = (0..8).map(|_| one.next()).collect();
        let mut apart = other.apart("x");
        apart.next();
        assert_eq!(first, (0..8).map(|_| other.next()).collect::<Vec<_>>());
        assert_ne!(Dice::new(7).apart("x").next(), Dice::new(7).apart("y").next());
        assert!((0..100).all(|_| one.between(3, 5) >= 3 && one.between(3, 5) <= 5));
        assert_eq!(one.below(0), 0);
    }
}
