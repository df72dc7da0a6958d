//! What was found once, the seeds, and what is near them.

use fuzz::{TARGETS, findings};

#[test]
fn what_was_found_is_found_no_more() {
    for target in TARGETS {
        for (path, input) in findings(target) {
            println!("{}", path.display());
            (target.run)(&input);
        }
    }
}

#[test]
fn seeds_and_seeds_cut_short() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for seed in seeds {
            (target.run)(&seed);
            (target.run)(&seed[..seed.len() / 2]);
            (target.run)(&seed[..seed.len() - 1]);
        }
        (target.run)(&[]);
    }
}
