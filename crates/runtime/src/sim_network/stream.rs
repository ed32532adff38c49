//! One end of a simulated connection, as tokio sees it: asks the world, and keeps the timers that
//! wake its task when something arrives. Dropping it closes the end.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::link::{Side, Step};
use super::{SimNetwork, SimWorld, ended};

pub(super) struct SimStream {
    world: SimWorld,
    link: u64,
    side: Side,
    local: IpAddr,
    remote: IpAddr,
    read_timer: Timer,
    write_timer: Timer,
}

impl SimStream {
    pub(super) fn new(network: &SimNetwork, link: u64, side: Side, remote: IpAddr) -> Self {
        Self {
            world: network.world.clone(),
            link,
            side,
            local: network.host,
            remote,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
        }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let step = stream.world.with(|world, wakers| {
                let way = world.way(stream.remote, stream.local);
                match world.links.get_mut(&stream.link) {
                    Some(link) => link.read(stream.side, &way, buf, cx, wakers),
                    None => Step::Done(Err(ended())),
                }
            });
            match step {
                Step::Done(result) => return Poll::Ready(result),
                Step::Wait(None) => return Poll::Pending,
                Step::Wait(Some(due)) => ready!(stream.read_timer.poll(due, cx)),
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let step = stream.world.with(|world, wakers| {
                let way = world.way(stream.remote, stream.local);
                match world.links.get_mut(&stream.link) {
                    Some(link) => link.write(stream.side, &way, &world.flights, data, cx, wakers),
                    None => Step::Done(Err(ended())),
                }
            });
            match step {
                Step::Done(result) => return Poll::Ready(result),
                Step::Wait(None) => return Poll::Pending,
                Step::Wait(Some(due)) => ready!(stream.write_timer.poll(due, cx)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.world.with(|world, wakers| {
            let due = Instant::now() + world.flights.draw();
            if let Some(link) = world.links.get_mut(&stream.link) {
                link.finish(stream.side, due, wakers);
            }
        });
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.world.with(|world, wakers| world.close(self.link, self.side, wakers));
    }
}

/// Wakes its task at a moment, which may change.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        sleep.as_mut().poll(cx)
    }
}
