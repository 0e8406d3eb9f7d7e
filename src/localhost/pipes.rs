//! Pipes: what is in one never passes through the process (splice(2)).

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::unistd::pipe2;

use super::descriptors::{Descriptors, Taken};

/// How many that nobody uses are kept. As a pipe is given back whenever it is empty, few are in use at a time: those of
/// connections of which one side takes less than the other gives.
const SPARE: usize = 64;

/// The most that is moved at a time. A pipe holds 16 pieces, each a page of 4 KiB or more.
const MOST: usize = 1 << 20;

/// A pipe with what is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    holds: usize,
    _descriptors: Taken,
}

impl Pipe {
    fn new(descriptors: &Descriptors) -> io::Result<Pipe> {
        let taken = descriptors.take(2).ok_or(Errno::EMFILE)?;
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Pipe { out, into, holds: 0, _descriptors: taken })
    }

    /// How many bytes are in it.
    pub(super) fn holds(&self) -> usize {
        self.holds
    }

    /// Takes what a socket has; 0 at its end.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let taken = splice(from, None, &self.into, None, MOST, flags())?;
        self.holds += taken;
        Ok(taken)
    }

    /// Gives to a socket what it takes.
    pub(super) fn empty(&mut self, to: impl AsFd) -> io::Result<usize> {
        let given = splice(&self.out, None, to, None, self.holds, flags())?;
        self.holds -= given;
        Ok(given)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// Pipes that nobody uses.
#[derive(Debug)]
pub(super) struct Pipes {
    spare: RefCell<Vec<Pipe>>,
    descriptors: Descriptors,
}

impl Pipes {
    /// None yet, of these descriptors.
    pub(super) fn new(descriptors: Descriptors) -> Pipes {
        Pipes { spare: RefCell::default(), descriptors }
    }

    /// An empty one.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub(super) fn take(&self) -> io::Result<Pipe> {
        let spare = self.spare.borrow_mut().pop();
        spare.map_or_else(|| Pipe::new(&self.descriptors), Ok)
    }

    /// It is not used any more. One that is not empty is closed.
    pub(super) fn give_back(&self, pipe: Pipe) {
        let mut spare = self.spare.borrow_mut();
        if pipe.holds == 0 && spare.len() < SPARE {
            spare.push(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn pipes_that_are_empty_are_used_again() {
        let descriptors = Descriptors::new(2 * SPARE + 4);
        let pipes = Pipes::new(descriptors.clone());
        let (mut client, ours) = UnixStream::pair().expect("sockets");
        let (their, mut server) = UnixStream::pair().expect("sockets");
        client.write_all(b"hello").expect("it can be written");
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipe.fill(&ours).expect("there is something"), 5);
        assert_eq!((pipe.holds(), pipe.empty(&their).expect("it is taken"), pipe.holds()), (5, 5, 0));
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).expect("it has come");
        assert_eq!(&bytes, b"hello");
        pipes.give_back(pipe);
        assert_eq!(pipes.spare.borrow().len(), 1);

        client.write_all(b"rest").expect("it can be written");
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipes.spare.borrow().len(), 0, "it is the same");
        pipe.fill(&ours).expect("there is something");
        pipes.give_back(pipe);
        assert_eq!(pipes.spare.borrow().len(), 0, "what was another's is nobody else's");

        let many: Vec<Pipe> = (0..=SPARE).map(|_| Pipe::new(&descriptors).expect("a pipe")).collect();
        many.into_iter().for_each(|pipe| pipes.give_back(pipe));
        assert_eq!(pipes.spare.borrow().len(), SPARE);
        let used: Vec<Pipe> = (0..SPARE).map(|_| pipes.take().expect("a pipe")).collect();
        let further: Vec<io::Result<Pipe>> = (0..3).map(|_| pipes.take()).collect();
        assert_eq!(further.iter().filter(|pipe| pipe.is_ok()).count(), 2, "of {} descriptors", 2 * SPARE + 4);
        drop((used, further));
        assert!(pipes.take().is_ok());
    }
}
