//! An ordered map of places on a device. What an application touches lies close together, so the values lie in pages of
//! consecutive places: one search finds a whole page, and a copy shares its pages until one of the two changes them.
//!
//! Invariants: bit `i` of `present` is set exactly if `values[i]` is there; no page is empty.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Places of one page; as many as `present` has bits. Eight blocks of 4 KiB where a place is a sector.
const PAGE: u64 = u64::BITS as u64;

#[derive(Clone)]
struct Page<V> {
    present: u64,
    values: [Option<V>; PAGE as usize],
}

impl<V> Page<V> {
    fn new() -> Page<V> {
        Page { present: 0, values: [const { None }; PAGE as usize] }
    }
}

#[derive(Clone)]
pub struct Paged<V> {
    pages: BTreeMap<u64, Rc<Page<V>>>,
}

impl<V> Default for Paged<V> {
    fn default() -> Paged<V> {
        Paged { pages: BTreeMap::new() }
    }
}

fn split(at: u64) -> (u64, usize) {
    (at / PAGE, (at % PAGE) as usize)
}

/// The places of a page that lie in `range`.
fn mask(page: u64, range: &Range<u64>) -> u64 {
    let first = page * PAGE;
    let (start, end) = (range.start.max(first) - first, range.end.min(first + PAGE).saturating_sub(first));
    let below = |n: u64| if n >= PAGE { u64::MAX } else { (1 << n) - 1 };
    below(end) & !below(start)
}

/// Indices of the bits that are set, ascending.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(index)
    })
}

impl<V> Paged<V> {
    pub fn get(&self, at: u64) -> Option<&V> {
        let (page, index) = split(at);
        self.pages.get(&page)?.values[index].as_ref()
    }
    pub fn contains(&self, at: u64) -> bool {
        self.get(at).is_some()
    }
    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.range(0..u64::MAX)
    }
    /// Ascending.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.iter().map(|(at, _)| at)
    }
    /// Ascending.
    pub fn range(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &V)> {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        self.pages.range(pages).flat_map(move |(number, page)| {
            let here = ones(page.present & mask(*number, &range));
            here.map(move |i| (number * PAGE + i as u64, page.values[i].as_ref().expect("its bit is set")))
        })
    }
    /// The places from `at` on, which lie in one page. `None`: nothing is there.
    pub fn slice(&self, at: u64, len: usize) -> Option<&[Option<V>]> {
        let (page, index) = split(at);
        Some(&self.pages.get(&page)?.values[index..index + len])
    }
}

impl<V: Clone> Paged<V> {
    pub fn get_mut(&mut self, at: u64) -> Option<&mut V> {
        let (page, index) = split(at);
        let page = self.pages.get_mut(&page)?;
        page.values[index].as_ref()?;
        Rc::make_mut(page).values[index].as_mut()
    }

    pub fn insert(&mut self, at: u64, value: V) -> Option<V> {
        let (page, index) = split(at);
        let page = Rc::make_mut(self.pages.entry(page).or_insert_with(|| Rc::new(Page::new())));
        page.present |= 1 << index;
        page.values[index].replace(value)
    }

    pub fn get_or_insert_with(&mut self, at: u64, make: impl FnOnce() -> V) -> &mut V {
        let (page, index) = split(at);
        let page = Rc::make_mut(self.pages.entry(page).or_insert_with(|| Rc::new(Page::new())));
        page.present |= 1 << index;
        page.values[index].get_or_insert_with(make)
    }

    pub fn remove(&mut self, at: u64) -> Option<V> {
        let (number, index) = split(at);
        let page = self.pages.get_mut(&number)?;
        page.values[index].as_ref()?;
        let page = Rc::make_mut(page);
        page.present &= !(1 << index);
        let value = page.values[index].take();
        if page.present == 0 {
            self.pages.remove(&number);
        }
        value
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&mut V) -> bool) {
        self.pages.retain(|_, page| {
            let page = Rc::make_mut(page);
            for index in ones(page.present) {
                if !keep(page.values[index].as_mut().expect("its bit is set")) {
                    page.values[index] = None;
                    page.present &= !(1 << index);
                }
            }
            page.present != 0
        });
    }

    pub fn clear(&mut self) {
        self.pages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the map that it stands for.
    #[test]
    fn it_is_an_ordered_map() {
        let mut rng = crate::rng::Rng::new(1);
        let (mut paged, mut map) = (Paged::default(), BTreeMap::new());
        for step in 0..20_000 {
            let at = rng.between(0, 300);
            match rng.between(0, 5) {
                0 | 1 => assert_eq!(paged.insert(at, step), map.insert(at, step)),
                2 => assert_eq!(paged.remove(at), map.remove(&at)),
                3 => assert_eq!(paged.get_mut(at).map(|v| *v += 1), map.get_mut(&at).map(|v| *v += 1)),
                4 => {
                    let end = at + rng.between(0, 200);
                    assert!(paged.range(at..end).eq(map.range(at..end).map(|(at, v)| (*at, v))));
                }
                _ if rng.chance(20) => {
                    paged.retain(|v| *v % 3 != 0);
                    map.retain(|_, v| *v % 3 != 0);
                }
                _ => assert_eq!(paged.get_or_insert_with(at, || step), map.entry(at).or_insert(step)),
            }
            assert_eq!(paged.get(at), map.get(&at));
        }
        assert!(paged.keys().eq(map.keys().copied()));
        assert!(paged.pages.values().all(|page| page.present != 0));
    }

    #[test]
    fn a_copy_keeps_what_it_had() {
        let mut paged = Paged::default();
        paged.insert(70, 1);
        let copy = paged.clone();
        paged.insert(70, 2);
        paged.insert(71, 3);
        assert_eq!(copy.iter().collect::<Vec<_>>(), [(70, &1)]);
        assert_eq!(paged.slice(70, 2), Some(&[Some(2), Some(3)][..]));
    }
}
