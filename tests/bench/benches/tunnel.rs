//! The loop that copies between two byte streams after a `101`, with in-memory pipes instead of TLS
//! and sockets.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use loopgate::proxy::tunnel::buffers::TunnelBufferBudget;
use loopgate::proxy::tunnel::{TunnelOptions, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::LocalSet;

const PIPE: usize = 256 * 1024;

/// Starts a tunnel to a gateway that echoes, and returns the client's end.
fn echo() -> DuplexStream {
    let ((client, near), (far, mut gateway)) = (duplex(PIPE), duplex(PIPE));
    let options = TunnelOptions {
        is_websocket: false,
        is_h2: false,
        buffer_budget: TunnelBufferBudget::new(64 << 20),
        first_message: None,
        connect_response: None,
        close_signal: Default::default(),
        quiet_limit: std::sync::Arc::new(std::time::Duration::default),
        received_bytes: Default::default(),
        sent_bytes: Default::default(),
    };
    tokio::task::spawn_local(run(near, far, (Bytes::new(), Bytes::new()), options));
    tokio::task::spawn_local(async move {
        let mut block = vec![0; PIPE];
        while let Ok(read @ 1..) = gateway.read(&mut block).await {
            gateway.write_all(&block[..read]).await.expect("the tunnel lives");
        }
    });
    client
}

fn tunnel(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let tasks = LocalSet::new();
    let mut group = criterion.benchmark_group("tunnel echo");
    for size in [256, 64 * 1024] {
        let mut client = runtime.block_on(tasks.run_until(async { echo() }));
        let (message, mut answer) = (vec![0x82; size], vec![0; size]);
        group.throughput(Throughput::Bytes(2 * size as u64));
        group.bench_function(format!("{size} bytes"), |bencher| {
            bencher.iter(|| {
                runtime.block_on(tasks.run_until(async {
                    client.write_all(&message).await.expect("the tunnel lives");
                    client.read_exact(&mut answer).await.expect("the tunnel lives");
                }));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, tunnel);
criterion_main!(benches);
