//! Nothing: the benches are `parts/`.
