//! Tells the engine when somebody else changes our tables.

use std::collections::BTreeSet;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::errors;
use crate::model::Family;
use crate::netlink::Retry;
use crate::nftables::{Heard, KernelError, Monitor};
use crate::sync::Disturbance;

/// Listening that has not failed for so long works. One that fails again and again at once fills no log.
const PROVEN: Duration = Duration::from_secs(10);

/// What hears of changes.
pub(super) trait Ear {
    /// Waits until there is something to hear.
    async fn hear(&mut self) -> Result<Vec<Heard>, KernelError>;
}

impl Ear for AsyncFd<Monitor> {
    async fn hear(&mut self) -> Result<Vec<Heard>, KernelError> {
        loop {
            let ready = self.readable_mut().await;
            let mut ready = ready.map_err(|source| KernelError::Io { step: "listen to changes", source })?;
            match ready.get_inner_mut().read()? {
                Some(heard) => return Ok(heard),
                None => ready.clear_ready(),
            }
        }
    }
}

/// Listens while there is a table that others can change: `owned` says whether there is none. Being told of changes costs
/// the kernel about as much as a small change itself.
pub(super) async fn listen_unless<E: Ear>(
    mut owned: watch::Receiver<bool>,
    mut open: impl FnMut() -> Result<E, KernelError>,
    disturbances: Sender<Disturbance>,
    mut told: impl FnMut(&Heard),
) {
    let mut not_owned = owned.clone();
    while not_owned.wait_for(|owned| !owned).await.is_ok() {
        tokio::select! {
            () = listen(&mut open, disturbances.clone(), &mut told) => return,
            _ = owned.wait_for(|owned| *owned) => {}
        }
    }
}

/// Listens until nobody wants to know. Where listening fails it is begun anew with growing pauses, for ever: each time the
/// engine is told, and looks whether something has changed meanwhile. `told` gets all that is heard.
pub(super) async fn listen<E: Ear>(
    mut open: impl FnMut() -> Result<E, KernelError>,
    disturbances: Sender<Disturbance>,
    mut told: impl FnMut(&Heard),
) {
    let mut retry = Retry::default();
    loop {
        let outcome = match open() {
            Ok(mut ear) => pass_on(&mut ear, &disturbances, &mut told, &mut retry).await,
            Err(error) => Err(error),
        };
        let Err(error) = outcome else { return };
        let again = retry.failed();
        if again.first {
            warn!("changes of nftables by others are not heard: {}; it is tried again", errors::text(&error));
        }
        sleep(again.pause).await;
    }
}

/// Passes on what is heard until nobody wants to know.
async fn pass_on(
    ear: &mut impl Ear,
    disturbances: &Sender<Disturbance>,
    told: &mut impl FnMut(&Heard),
    retry: &mut Retry,
) -> Result<(), KernelError> {
    if disturbances.send(Disturbance::Listening).await.is_err() {
        return Ok(());
    }
    let proven = Instant::now() + PROVEN;
    loop {
        let heard = tokio::select! {
            heard = ear.hear() => heard?,
            () = sleep_until(proven), if retry.is_failing() => {
                retry.works();
                info!("changes of nftables by others are heard again");
                continue;
            }
        };
        heard.iter().for_each(&mut *told);
        let families: BTreeSet<Family> = heard
            .into_iter()
            .flat_map(|heard| match heard {
                Heard::Foreign { family, .. } => vec![family],
                Heard::Lost => Family::ALL.to_vec(),
            })
            .collect();
        for family in families {
            if disturbances.send(Disturbance::Table(family)).await.is_err() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::io;

    use super::*;

    /// Hears this and then fails, or waits for ever.
    struct Script {
        heard: VecDeque<Heard>,
        fails: bool,
    }

    impl Ear for Script {
        async fn hear(&mut self) -> Result<Vec<Heard>, KernelError> {
            match self.heard.pop_front() {
                Some(heard) => Ok(vec![heard]),
                None if self.fails => Err(failure()),
                None => std::future::pending().await,
            }
        }
    }

    fn failure() -> KernelError {
        KernelError::Io { step: "listen to changes", source: io::Error::from_raw_os_error(nix::libc::EIO) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_begun_anew_and_the_engine_is_told() {
        let foreign = |family| Heard::Foreign { family, port: 1, generation: 2 };
        let script = |heard: &[Heard], fails| Ok(Script { heard: heard.iter().copied().collect(), fails });
        let openings = RefCell::new(VecDeque::from([
            script(&[foreign(Family::V4)], true),
            Err(failure()),
            Err(failure()),
            script(&[Heard::Lost], false),
        ]));
        let (start, opened) = (Instant::now(), RefCell::new(Vec::new()));
        let open = || {
            opened.borrow_mut().push(start.elapsed().as_millis());
            openings.borrow_mut().pop_front().expect("the last one waits for ever")
        };
        let (sender, mut disturbances) = tokio::sync::mpsc::channel(16);
        let told = Cell::new(0);
        let expect = async {
            use Disturbance::{Listening, Table};
            let expected = [Listening, Table(Family::V4), Listening, Table(Family::V4), Table(Family::V6)];
            for disturbance in expected {
                assert_eq!(disturbances.recv().await, Some(disturbance));
            }
        };
        tokio::select! {
            () = listen(open, sender, |_| told.set(told.get() + 1)) => panic!("it has ended"),
            () = expect => {}
        }
        assert_eq!(told.get(), 2);
        assert_eq!(*opened.borrow(), [0, 100, 300, 700]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_at_once_is_not_begun_anew_all_the_time() {
        let (sender, mut disturbances) = tokio::sync::mpsc::channel(16);
        let opened = Cell::new(0);
        let open = || {
            opened.set(opened.get() + 1);
            Ok(Script { heard: VecDeque::from([Heard::Lost]), fails: true })
        };
        tokio::select! {
            () = listen(open, sender, |_| {}) => panic!("it has ended"),
            () = async { while disturbances.recv().await.is_some() {} } => panic!("it has ended"),
            () = sleep(Duration::from_secs(600)) => {}
        }
        assert!((50..=70).contains(&opened.get()), "{} times in ten minutes", opened.get());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_listens_while_the_tables_are_owned() {
        let (sender, mut disturbances) = tokio::sync::mpsc::channel(16);
        let (owned, is_owned) = watch::channel(true);
        let open = || Ok(Script { heard: VecDeque::new(), fails: false });
        let script = async {
            let mut next = async |within| tokio::time::timeout(Duration::from_secs(within), disturbances.recv()).await;
            assert!(next(9).await.is_err(), "they are owned");
            owned.send_replace(false);
            assert_eq!(next(9).await, Ok(Some(Disturbance::Listening)));
            owned.send_replace(true);
            assert!(next(9).await.is_err(), "they are owned again");
            owned.send_replace(false);
            assert_eq!(next(9).await, Ok(Some(Disturbance::Listening)), "something may have changed");
        };
        tokio::select! {
            () = listen_unless(is_owned, open, sender, |_| {}) => panic!("it has ended"),
            () = script => {}
        }
    }

    #[tokio::test]
    async fn it_ends_with_the_engine() {
        let (sender, disturbances) = tokio::sync::mpsc::channel(16);
        drop(disturbances);
        listen(|| Ok(Script { heard: VecDeque::new(), fails: false }), sender, |_| {}).await;
    }
}
