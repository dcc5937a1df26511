use std::collections::BTreeSet;

use super::*;

fn cut(prepare: impl Fn(&mut File), seed: u64) -> Vec<u8> {
    let mut file = File::default();
    prepare(&mut file);
    file.power_cut(&mut Chance::new(seed));
    file.content
}

#[test]
fn what_was_synced_stays_and_what_was_not_may_go() {
    let outcomes: BTreeSet<Vec<u8>> = (0..200)
        .map(|seed| {
            let prepare = |file: &mut File| {
                file.write(0, b"first");
                file.sync();
                file.write(0, b"other");
                file.write(5, b" more");
                file.set_len(7);
            };
            cut(prepare, seed)
        })
        .collect();
    let is = |wanted: &[u8]| outcomes.contains(wanted);
    assert!(is(b"first") && is(b"other") && is(b"other m") && is(b"first more") && is(b"other more"), "{outcomes:?}");
    assert!(outcomes.iter().all(|content| content.starts_with(b"first") || content.starts_with(b"other")));
}

#[test]
fn a_write_is_torn_at_sectors_of_the_disk_and_nowhere_else() {
    let offset = 100;
    let data = vec![b'n'; 4 * SECTOR];
    let mut torn = 0;
    for seed in 0..500 {
        let mut file = File::durable(vec![b'o'; 8 * SECTOR]);
        file.write(offset, &data);
        file.power_cut(&mut Chance::new(seed));
        let changes: Vec<usize> =
            (1..file.content.len()).filter(|at| file.content[*at] != file.content[at - 1]).collect();
        torn += usize::from(changes.iter().any(|at| *at != offset && *at != offset + data.len()));
        assert!(
            changes.iter().all(|at| at % SECTOR == 0 || *at == offset || *at == offset + data.len()),
            "seed {seed}: {changes:?}"
        );
    }
    assert!(torn > 50, "of 500 writes {torn} were torn");
}

/// Taking changes back and laying all of them down again gives the same file, whatever they were.
#[test]
fn changes_can_be_taken_back_and_laid_down_again() {
    let mut chance = Chance::new(5);
    for round in 0..300 {
        let mut file = File::default();
        let mut synced = Vec::new();
        for step in 0..40_u8 {
            match chance.below(8) {
                0 => file.set_len(chance.index(3000)),
                1 => {
                    file.sync();
                    synced = file.content.clone();
                }
                _ => file.write(chance.index(2000), &vec![step; 1 + chance.index(700)]),
            }
        }
        let shown = file.content.clone();
        let mut undone = Vec::new();
        while let Some(change) = file.unsynced.pop_back() {
            undone.push(change.undo(&mut file.content));
        }
        assert_eq!(file.content, synced, "round {round}");
        undone.iter().rev().for_each(|change| change.redo(&mut file.content));
        assert_eq!(file.content, shown, "round {round}");
    }
}

#[test]
fn memory_follows_what_the_file_holds() {
    let mut file = File::default();
    for page in 0..1000 {
        file.write(page * 4096, &[1; 4096]);
    }
    assert!(file.content.capacity() <= 4_096_000 * 9 / 8 + 4096, "{}", file.content.capacity());
    assert!(file.unsynced.iter().all(|change| change.before.is_empty()), "a longer file has nothing to remember");
    file.sync();
    file.set_len(4096);
    file.sync();
    assert!(file.content.capacity() <= 16_384, "{}", file.content.capacity());
    for _ in 0..2 * UNSYNCED_MAX {
        file.write(0, b"x");
    }
    assert_eq!(file.unsynced.len(), UNSYNCED_MAX);
}
