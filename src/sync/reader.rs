//! Reads, on a thread of its own, which clients the kernel remembers.
//!
//! The sync loop asks, and takes what comes when it has time for it: a reader that is slow, or stuck, keeps back nobody.

use std::io;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Instant;

use tokio::sync::mpsc;

use super::affinity::Purpose;
use super::asked::Asked;
use crate::model::Family;
use crate::nftables::{Clients, KernelError, ReadClients, Slice};

/// How many pieces of news wait for the loop; then the reader does.
const WAITING: usize = 2;

/// What a look has found.
#[derive(Debug)]
pub enum News {
    /// Some clients.
    Slice(Slice),
    /// Those were all, or reading them has failed.
    End(Result<Clients, KernelError>),
}

/// The thread that reads. Dropping it ends it, whatever it was asked for.
#[derive(Debug)]
pub struct Reader(Asked<(Family, Purpose), (Family, News)>);

impl Reader {
    /// Starts the thread.
    ///
    /// # Errors
    /// One line that names the limits to look at.
    pub fn spawn(clients: impl ReadClients + Send + 'static) -> io::Result<Reader> {
        let does = "reads the clients with session affinity";
        Ok(Reader(Asked::spawn("clients", does, WAITING, move |asked, news| run(clients, asked, news))?))
    }

    /// Asks for a look at a family's clients. Never waits. The news of it end with [`News::End`].
    pub(super) fn ask(&self, family: Family, purpose: Purpose) {
        self.0.ask((family, purpose));
    }

    /// The next news. It may be dropped before it is ready.
    pub(super) async fn next(&mut self) -> (Family, News) {
        self.0.next().await
    }

    /// The next news, if there are any.
    pub(super) fn try_next(&mut self) -> Option<(Family, News)> {
        self.0.try_next()
    }
}

fn run(mut clients: impl ReadClients, asked: &Receiver<(Family, Purpose)>, news: &mpsc::Sender<(Family, News)>) {
    for (family, purpose) in asked {
        let mut tell = |told| news.blocking_send((family, told)).is_ok();
        let end = look(&mut clients, family, purpose, &mut tell);
        if !tell(News::End(end)) {
            return;
        }
    }
}

fn look(
    clients: &mut impl ReadClients,
    family: Family,
    purpose: Purpose,
    tell: &mut impl FnMut(News) -> bool,
) -> Result<Clients, KernelError> {
    let started = Instant::now();
    let counted = clients.count(family)?;
    if purpose == Purpose::Count
        && let Some(count) = counted
    {
        return Ok(Clients { count, torn: false, took: started.elapsed() });
    }
    let all = clients.read(family, &mut |slice| {
        let took = slice.took;
        let goes_on = tell(News::Slice(slice));
        // The kernel reads a piece at one go, and nobody else has its processor meanwhile: half of it at most.
        if goes_on {
            thread::sleep(took);
        }
        goes_on
    })?;
    Ok(Clients { count: counted.unwrap_or(all.count), ..all })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::Protocol;
    use crate::nftables::in_memory::InMemoryClients;
    use crate::ruleset::backend::Backend;
    use crate::ruleset::read::Remembered;
    use crate::sync::asked::PATIENCE;

    /// What comes of a look, as the number of slices and the number of clients.
    fn looked(reader: &mut Reader, family: Family, purpose: Purpose) -> (usize, usize) {
        reader.ask(family, purpose);
        let mut slices = 0;
        loop {
            match reader.0.news.blocking_recv().expect("it goes on") {
                (of, News::Slice(slice)) => {
                    assert_eq!(of, family);
                    slices += usize::from(!slice.clients.is_empty());
                }
                (of, News::End(end)) => {
                    assert_eq!(of, family);
                    return (slices, end.expect("it is read").count);
                }
            }
        }
    }

    fn remembered(nth: u32) -> Remembered {
        let port = NonZeroU16::MIN;
        let backend = Backend { address: Ipv4Addr::LOCALHOST.into(), port };
        let (client, destination) = (Ipv4Addr::from(nth).into(), Ipv4Addr::LOCALHOST.into());
        Remembered { client, destination, protocol: Protocol::Tcp, port, backend }
    }

    fn many() -> InMemoryClients {
        InMemoryClients { clients: (0..2_000).map(remembered).collect(), count: None }
    }

    #[test]
    fn a_look_comes_slice_by_slice_and_a_count_where_the_kernel_counts() {
        let mut reader = Reader::spawn(many()).expect("a thread");
        assert_eq!(looked(&mut reader, Family::V4, Purpose::Forget), (5, 2_000));
        assert_eq!(looked(&mut reader, Family::V4, Purpose::Count), (5, 2_000), "an old kernel");
        assert_eq!(looked(&mut reader, Family::V6, Purpose::Forget), (0, 0));
        let mut reader = Reader::spawn(InMemoryClients { count: Some(2_010), ..many() }).expect("a thread");
        assert_eq!(looked(&mut reader, Family::V4, Purpose::Count), (0, 2_010));
        assert_eq!(looked(&mut reader, Family::V4, Purpose::Forget), (5, 2_010));
    }

    #[test]
    fn a_reader_that_nobody_listens_to_waits_and_ends_when_it_is_dropped() {
        let reader = Reader::spawn(many()).expect("a thread");
        for _ in 0..3 {
            reader.ask(Family::V4, Purpose::Forget);
        }
        // It is full, and the thread waits for somebody to take something.
        while reader.0.news.len() < WAITING {
            thread::yield_now();
        }
        let start = Instant::now();
        drop(reader);
        assert!(start.elapsed() < PATIENCE, "it did not have to be left behind");
    }
}
