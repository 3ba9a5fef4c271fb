//! Micro-benchmarks of what knows no kernel: parsing, rewriting, scheduling, the scaling policy.

use std::{hint::black_box, net::Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};

fn all(_criterion: &mut Criterion) {
    let _ = black_box(Ipv4Addr::LOCALHOST);
}

criterion_group!(benches, all);
criterion_main!(benches);
