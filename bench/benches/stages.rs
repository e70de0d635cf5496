//! Time of each stage of the data path, by criterion: `cargo bench --package weir-bench`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_bench::stages::{STAGES, stage};

fn stages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stage");
    for name in STAGES {
        let mut stage = stage(name).expect("it is set up");
        let lines = stage().expect("it works");
        group.throughput(Throughput::Elements(lines));
        group.bench_function(name, |bencher| bencher.iter(|| stage().expect("it works")));
    }
}

criterion_group!(benches, stages);
criterion_main!(benches);
