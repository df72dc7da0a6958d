//! A set of pages of the image, one bit each.

use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
pub(super) struct PageSet {
    pub words: Vec<u64>,
}

impl PageSet {
    pub fn new(pages: usize) -> PageSet {
        PageSet { words: vec![0; pages.div_ceil(64)] }
    }
    pub fn grow(&mut self, pages: usize) {
        self.words.resize(pages.div_ceil(64), 0);
    }
    pub fn contains(&self, page: u32) -> bool {
        self.words[page as usize / 64] & (1 << (page % 64)) != 0
    }
    pub fn insert(&mut self, page: u32) {
        self.words[page as usize / 64] |= 1 << (page % 64);
    }
    pub fn remove(&mut self, page: u32) {
        self.words[page as usize / 64] &= !(1 << (page % 64));
    }
}

/// Set bits of a word, ascending.
pub(super) fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}
