//! Fractional order indexes: byte strings without a trailing zero, compared lexicographically. Between any two there is another.

/// Indexes of `len` items of a new list, evenly spread.
pub(super) fn spread(len: usize) -> Vec<Vec<u8>> {
    let width: u32 = if len < 255 {
        1
    } else if len < 65_535 {
        2
    } else {
        4
    };
    let span = 1u64 << (8 * width);
    (1..=len as u64)
        .map(|place| {
            let value = place * span / (len as u64 + 1);
            trimmed(value.to_be_bytes()[8 - width as usize..].to_vec())
        })
        .collect()
}

/// An index above `low` and below `high`; an empty `low` is the start, no `high` is the end. If there is no room because the two
/// are equal or disordered, the index is above `low` alone.
pub(super) fn between(low: &[u8], high: Option<&[u8]>) -> Vec<u8> {
    let mut high = high.filter(|high| *high > low);
    let mut index = Vec::with_capacity(low.len() + 1);
    for at in 0.. {
        let floor = u16::from(low.get(at).copied().unwrap_or(0));
        let ceiling = high.map_or(256, |high| u16::from(high.get(at).copied().unwrap_or(0)));
        let middle = floor.midpoint(ceiling);
        if middle > floor {
            index.push(u8::try_from(middle).unwrap_or(u8::MAX));
            break;
        }
        // No digit fits between: take the lower bound's, and go on. Below a higher digit everything is open.
        index.push(u8::try_from(floor).unwrap_or(u8::MAX));
        if ceiling > floor {
            high = None;
        }
    }
    index
}

/// Which of `orders`, in the wanted sequence, may stay: a longest strictly increasing subsequence.
pub(super) fn keepers(orders: &[Option<&[u8]>]) -> Vec<bool> {
    // tails[k]: place of the smallest last element of an increasing subsequence of length k + 1.
    let mut tails: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; orders.len()];
    for (place, order) in orders.iter().enumerate() {
        let Some(order) = order else { continue };
        let length = tails.partition_point(|tail| orders[*tail].is_some_and(|last| last < *order));
        before[place] = length.checked_sub(1).map(|shorter| tails[shorter]);
        if length == tails.len() {
            tails.push(place);
        } else {
            tails[length] = place;
        }
    }
    let mut keep = vec![false; orders.len()];
    let mut next = tails.last().copied();
    while let Some(place) = next {
        keep[place] = true;
        next = before[place];
    }
    keep
}

fn trimmed(mut index: Vec<u8>) -> Vec<u8> {
    while index.len() > 1 && index.last() == Some(&0) {
        index.pop();
    }
    index
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn spread_is_strictly_increasing() {
        for len in [0, 1, 2, 200, 254, 255, 256, 5000, 70_000] {
            let indexes = spread(len);
            assert_eq!(indexes.len(), len);
            assert!(indexes.windows(2).all(|pair| pair[0] < pair[1]), "{len}");
            assert!(indexes.iter().all(|index| index.last() != Some(&0)), "{len}");
        }
    }

    #[test]
    fn between_is_always_between() {
        let (mut low, mut high) = (Vec::new(), None::<Vec<u8>>);
        for step in 0..400 {
            let middle = between(&low, high.as_deref());
            assert!(middle > low, "{low:?} {middle:?}");
            assert!(high.as_ref().is_none_or(|high| middle < *high), "{middle:?} {high:?}");
            assert_ne!(middle.last(), Some(&0));
            if step % 3 == 0 { low = middle } else { high = Some(middle) }
        }
    }

    #[test]
    fn the_longest_increasing_part_stays() {
        let orders: Vec<Option<&[u8]>> = vec![Some(&[5]), Some(&[1]), None, Some(&[2]), Some(&[2]), Some(&[9])];
        assert_eq!(keepers(&orders), [false, true, false, false, true, true].map(|keep| keep).to_vec());
    }
}
