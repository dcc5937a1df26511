//! The table of answers: who keeps them, and how many.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

/// What is asked, and of which bytes.
type Question = (&'static str, Vec<Bytes>);

/// Answers, the oldest first to go.
struct Kept {
    len_max: usize,
    answers: HashMap<Question, Rc<dyn Any>>,
    order: VecDeque<Question>,
}

thread_local! {
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Keeps so many answers on this thread until the result is dropped.
#[must_use = "nothing is kept any more when this is dropped"]
pub fn keep(len_max: usize) -> Keeping {
    KEPT.set(Some(Kept { len_max, answers: HashMap::new(), order: VecDeque::new() }));
    Keeping(())
}

/// While it is there answers are kept.
#[derive(Debug)]
pub struct Keeping(());

impl Drop for Keeping {
    fn drop(&mut self) {
        KEPT.set(None);
    }
}

/// What `work` answers, which must follow from `of` alone; `what` tells one kind of work from another.
pub(super) fn or<T: Clone + 'static>(what: &'static str, of: &[&Bytes], work: impl FnOnce() -> T) -> T {
    if KEPT.with_borrow(Option::is_none) {
        return work();
    }
    let question: Question = (what, of.iter().map(|bytes| (*bytes).clone()).collect());
    let known = KEPT.with_borrow(|kept| kept.as_ref().and_then(|kept| kept.answers.get(&question).cloned()));
    if let Some(answer) = known.and_then(|known| known.downcast_ref::<T>().cloned()) {
        return answer;
    }
    let answer = work();
    KEPT.with_borrow_mut(|kept| {
        let Some(kept) = kept else { return };
        if kept.order.len() >= kept.len_max
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.answers.remove(&oldest);
        }
        if kept.answers.insert(question.clone(), Rc::new(answer.clone())).is_none() {
            kept.order.push_back(question);
        }
    });
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_worked_out_once_while_it_is_kept_and_each_time_otherwise() {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        let mut worked = 0;
        let mut length = |text: &'static str| {
            or("length", &[&bytes(text)], || {
                worked += 1;
                (worked, text.len())
            })
        };
        assert_eq!([length("a"), length("a")], [(1, 1), (2, 1)]);
        let keeping = keep(2);
        assert_eq!([length("a"), length("a")], [(3, 1), (3, 1)], "kept");
        assert_eq!(or("first byte", &[&bytes("a")], || b'a'), b'a', "another question of the same bytes");
        assert_eq!([length("bb"), length("a")], [(4, 2), (5, 1)], "the oldest of three has gone");
        drop(keeping);
        assert_eq!(length("bb"), (6, 2));
    }
}
