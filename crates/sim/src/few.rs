//! A list that nearly always has one element: that one needs no heap.

use std::fmt;

#[derive(Clone)]
pub enum Few<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Few<T> {
    pub fn push(&mut self, value: T) {
        match self {
            Few::Many(values) => values.push(value),
            Few::One(_) => {
                let Few::One(first) = std::mem::take(self) else { unreachable!("just matched") };
                *self = Few::Many(vec![first, value]);
            }
        }
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        match self {
            Few::Many(values) => values.retain(keep),
            Few::One(value) if keep(value) => {}
            Few::One(_) => *self = Few::default(),
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Few<T> {
        Few::Many(Vec::new())
    }
}

impl<T> std::ops::Deref for Few<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Few::One(value) => std::slice::from_ref(value),
            Few::Many(values) => values,
        }
    }
}

impl<T> std::ops::DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Few::One(value) => std::slice::from_mut(value),
            Few::Many(values) => values,
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Few<T> {
        let mut values = values.into_iter();
        let mut few = match values.next() {
            Some(first) => Few::One(first),
            None => return Few::default(),
        };
        values.for_each(|value| few.push(value));
        few
    }
}

/// As a list: the findings print it.
impl<T: fmt::Debug> fmt::Debug for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().collect::<Vec<_>>().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_becomes_many_and_none() {
        let mut few = Few::One(1);
        few.push(2);
        few.push(3);
        assert_eq!(*few, [1, 2, 3]);
        few.retain(|n| *n == 2);
        assert_eq!((*few).to_vec(), [2]);
        assert_eq!(format!("{:?}", Few::One(7)), "[7]");
        let mut few = Few::One(1);
        few.retain(|_| false);
        assert!(few.is_empty());
    }
}
