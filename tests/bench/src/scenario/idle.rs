//! Thousands of WebSockets that are idle most of the time.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Sample;
use crate::client::Connection;
use crate::peer::Running;
use crate::websocket::client_frame;

/// The number of WebSockets that are opened, or send, at the same time.
const AT_ONCE: usize = 64;
/// The pause between work and a measurement of memory, so that memory that is freed with a delay is
/// freed.
pub(super) const SETTLE: Duration = Duration::from_secs(3);
/// The shortest time for which the CPU time without traffic is measured. A shorter time may miss
/// periodic work.
const LEAST_QUIET_TIME: Duration = Duration::from_secs(10);

pub(super) async fn measure(running: &Running, time: Duration, count: usize) -> io::Result<Sample> {
    let tree = running.tree.as_ref().ok_or(io::ErrorKind::Unsupported)?;
    let each = |after: u64, before: u64, open: usize| after.saturating_sub(before) as f64 / open as f64 / 1024.0;
    let target = running.target.clone();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (empty, cpu) = (tree.memory()?, tree.cpu());

    let sockets = Rc::new(RefCell::new(Vec::with_capacity(count)));
    let opened = Rc::clone(&sockets);
    let mut failed = all(count, move |_| {
        let (target, opened) = (target.clone(), Rc::clone(&opened));
        async move {
            let mut socket = target.connect().await?;
            socket.upgrade().await?;
            opened.borrow_mut().push(socket);
            Ok(())
        }
    })
    .await;
    let open = sockets.borrow().len();
    let connecting = (tree.cpu() - cpu).as_secs_f64() * 1e6 / open as f64;
    tokio::time::sleep(SETTLE).await;
    let new = each(tree.memory()?, empty, open);

    failed += echo_each(&sockets, 64 * 1024).await;
    tokio::time::sleep(SETTLE).await;
    let used = each(tree.memory()?, empty, open);

    let quiet_time = time.max(LEAST_QUIET_TIME);
    let cpu = tree.cpu();
    tokio::time::sleep(quiet_time).await;
    let quiet = (tree.cpu() - cpu).as_secs_f64() * 1e3 / quiet_time.as_secs_f64();

    let cpu = tree.cpu();
    failed += echo_each(&sockets, 256).await;
    let tick = (tree.cpu() - cpu).as_secs_f64() * 1e6 / open as f64;
    Ok(Sample::new(
        vec![
            ("connections", open as f64),
            ("KiB each, new", new),
            ("KiB each, after 64 KiB", used),
            ("CPU ms/s, quiet", quiet),
            ("CPU µs/new connection", connecting),
            ("CPU µs/echo of an idle one", tick),
        ],
        failed,
    ))
}

/// Has each socket echo a message of `size` bytes; returns how many failed. Sockets that fail are
/// closed.
async fn echo_each(sockets: &Rc<RefCell<Vec<Connection>>>, size: usize) -> u64 {
    let taken = Rc::new(RefCell::new(sockets.take()));
    let count = taken.borrow().len();
    let (sockets, frame) = (Rc::clone(sockets), Rc::<[u8]>::from(client_frame(size)));
    all(count, move |_| {
        let (taken, sockets, frame) = (Rc::clone(&taken), Rc::clone(&sockets), Rc::clone(&frame));
        async move {
            let mut socket = taken.borrow_mut().pop().ok_or(io::ErrorKind::NotFound)?;
            socket.echo(&frame).await?;
            sockets.borrow_mut().push(socket);
            Ok(())
        }
    })
    .await
}

/// Does `work` `count` times, [`AT_ONCE`] at a time; returns how many failed.
pub(super) async fn all<F>(count: usize, work: impl Fn(usize) -> F) -> u64
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let turns = Rc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let (work, turns) = (work(number), Rc::clone(&turns));
        tasks.spawn_local(async move {
            let _turn = turns.acquire().await.expect("never closed");
            work.await
        });
    }
    let mut failed = 0;
    while let Some(done) = tasks.join_next().await {
        if let Err(error) = done.expect("no client panics") {
            if failed == 0 {
                eprintln!("    a client failed: {error}");
            }
            failed += 1;
        }
    }
    failed
}
