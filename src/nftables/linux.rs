//! The kernel of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::chains::Found;
use super::counts::{self, Deleted, Listener};
use super::decode;
use super::encode::{Batch, EncodeError, encode};
use super::expected::Expected;
use super::kernel::{CommitError, Committed, KeptClients, Kernel, KernelError, Snapshot, Unread, look_through};
use super::lookup::{get, look_up, stands_for_all};
use super::monitor::Audience;
use super::numbers::protocol_family;
use super::owner::{Owner, Protection};
use super::probe::{self, ProbeError};
use super::request::{NftablesMessage as _, Request, Taken, open, unexpected};
use super::table::{self, NOT_THERE, Table};
use super::uapi::{self, msg};
use super::words::words;
use crate::diff::{Operation, Transaction};
use crate::model::{Family, FrontendKey, PerFamily};
use crate::netlink::{End, Message, Socket, find, messages};
use crate::ruleset::base;
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::kept::Kept;
use crate::ruleset::names::{ChainName, SetName, TableName};
use crate::ruleset::read::Remembered;
use crate::ruleset::types::{Chain, Element, Key, SetDef};

/// Room for answers: an error takes less than 1 KiB of the socket's memory, so thousands fit.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;

/// From so many operations on nobody listens to a transaction: to describe each takes the kernel some 2 microseconds. Fewer
/// are not worth that the table is read back when others have changed anything meanwhile.
const LARGE: usize = 2_000;

/// How often chains and rules are read again because others have changed something between the two.
const ATTEMPTS: usize = 20;

/// nftables of the network namespace that it was opened in.
pub struct LinuxKernel {
    table: TableName,
    socket: Socket,
    /// The generation of the ruleset, if only we have changed it since it was last asked for.
    generation: Option<u32>,
    /// Whether somebody else has changed something since a family was read, or since [`Kernel::undisturbed`] was last asked
    /// about it.
    disturbed: PerFamily<bool>,
    /// The other program that owned a table when that was last looked up.
    other: Option<Owner>,
    audience: Audience,
    /// Who is told what frontends have counted that are deleted.
    listener: Option<Listener>,
}

impl LinuxKernel {
    /// For the tables of the proxy that serves the node. Opens a socket, which needs no privilege; everything else does.
    pub fn open() -> Result<LinuxKernel, KernelError> {
        LinuxKernel::of(TableName::NODE)
    }

    /// The same for tables of this name.
    pub fn of(table: TableName) -> Result<LinuxKernel, KernelError> {
        let failed = |step| move |source: io::Error| KernelError::Io { step, source };
        let socket = open()?;
        socket.want_clear_errors().map_err(failed("set a socket option"))?;
        socket.raise_receive_queue(RECEIVE_QUEUE);
        let audience = Audience::of(table, socket.port());
        let disturbed = PerFamily::default();
        Ok(LinuxKernel { table, socket, generation: None, disturbed, other: None, audience, listener: None })
    }

    /// Tells `listener` from now on what frontends had counted in all when this deletes them from their map, or their table,
    /// and when that was done. What others delete is not told.
    pub fn tell_last_counts(&mut self, listener: impl FnMut(Vec<FrontendCount>, Instant) + Send + 'static) {
        self.listener = Some(Box::new(listener));
    }

    /// For a [`super::Monitor`] of what others change.
    pub fn audience(&self) -> Audience {
        self.audience.clone()
    }

    /// The families whose table exists.
    pub fn tables(&mut self) -> Result<Vec<Family>, KernelError> {
        let mut families = Vec::new();
        for family in Family::ALL {
            if table::ask(&mut self.socket, family, self.table.as_str())?.is_some() {
                families.push(family);
            }
        }
        Ok(families)
    }

    /// What protects our table, if it is there.
    pub fn protection(&mut self, family: Family) -> Result<Option<Protection>, KernelError> {
        Ok(table::ask(&mut self.socket, family, self.table.as_str())?.map(Table::protection))
    }

    /// Tries whether the kernel can do what our tables need, in each family, without leaving a trace. Takes a few
    /// milliseconds, more where the kernel has to load modules.
    pub fn probe(&mut self) -> Result<(), ProbeError> {
        for family in Family::ALL {
            probe::check_release(family, &probe::release())?;
            let batch = probe::batch(family, self.socket.next_sequence()).map_err(refuse)?;
            self.socket.used_sequence(batch.last_sequence());
            match self.exchange(&batch, batch.bytes_without_end(), |_, _| "a table to try".to_owned(), |_| {}) {
                Ok(()) => {}
                Err(CommitError::Refused { operation, source, .. }) => {
                    return Err(probe::explain(family, operation, source));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Tries the same by making the tables for good, in each family: some kernels check what a hook allows only then. For a
    /// network namespace in which nobody else is, and that nobody needs afterwards.
    pub fn try_for_good(&mut self) -> Result<(), ProbeError> {
        self.probe()?;
        for family in Family::ALL {
            match self.commit(&probe::transaction(family)) {
                Ok(_) => {}
                Err(CommitError::Refused { operation, source, .. }) => {
                    return Err(probe::explain(family, operation, source));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The number of the ruleset's generation: every commit in the network namespace counts it up.
    fn ask_generation(&mut self) -> Result<Option<u32>, KernelError> {
        let request = Request { kind: msg::GETGEN, family: 0, dump: false, texts: &[] };
        let mut generation = None;
        let answer = request.ask(&mut self.socket, |message| {
            let id = message.and_then(|message| find(message.attributes(), uapi::NFTA_GEN_ID));
            generation = id.and_then(|id| id.number());
        })?;
        answer.map(|()| generation).map_err(|errno| unexpected("ask for the generation", errno))
    }

    /// Whether nobody else has changed anything since the generation was last asked for.
    fn is_undisturbed(&mut self) -> bool {
        let known = self.generation;
        self.note_generation().is_ok() && known.is_some() && self.generation == known
    }

    /// Compares the generation with the one that our own commits should have led to.
    fn note_generation(&mut self) -> Result<(), KernelError> {
        let generation = self.ask_generation()?;
        if self.generation.is_some() && self.generation != generation {
            self.disturbed = PerFamily::from_fn(|_| true);
        }
        self.generation = generation;
        Ok(())
    }

    /// Whether tables can have an owner and outlive it (Linux 6.9). Asked like [`LinuxKernel::probe`].
    pub fn can_own(&mut self) -> Result<bool, ProbeError> {
        self.takes(probe::owned)
    }

    /// Whether slots can be chosen by a hash (CONFIG_NFT_HASH). Asked like [`LinuxKernel::probe`].
    pub fn can_hash(&mut self) -> Result<bool, ProbeError> {
        self.takes(probe::hashed)
    }

    /// Whether the kernel takes what is asked, in both families.
    fn takes(&mut self, question: fn(Family, u32) -> Result<Batch, EncodeError>) -> Result<bool, ProbeError> {
        for family in Family::ALL {
            let batch = question(family, self.socket.next_sequence()).map_err(refuse)?;
            self.socket.used_sequence(batch.last_sequence());
            match self.exchange(&batch, batch.bytes_without_end(), |_, _| "a table to try".to_owned(), |_| {}) {
                Ok(()) => {}
                Err(CommitError::Refused { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Who else owns our table, if anybody does and the kernel says so.
    fn owner(&mut self, family: Family) -> Option<Owner> {
        let table = table::ask(&mut self.socket, family, self.table.as_str()).ok()??;
        self.other_owner(table.owner)
    }

    /// The owner with this port id, if it is another. Who that is takes some time to find out, and is asked often.
    fn other_owner(&mut self, port: Option<u32>) -> Option<Owner> {
        let port = port.filter(|port| *port != self.socket.port())?;
        if self.other.as_ref().is_none_or(|owner| owner.port != port) {
            self.other = Some(Owner::of(port));
        }
        self.other.clone()
    }

    /// Asks for all objects of a kind in our table. `each` gets every message of it; `None` means: forget what came.
    fn dump_table(
        &mut self,
        family: Family,
        kinds: (u16, u16),
        step: &'static str,
        texts: &[(u16, &str)],
        each: impl FnMut(Option<&Message<'_>>),
    ) -> Result<(), KernelError> {
        table::dump(&mut self.socket, self.table.as_str(), protocol_family(family), kinds, (step, texts), each)
    }

    /// Names of all objects of a kind.
    fn names(
        &mut self,
        family: Family,
        kinds: (u16, u16),
        step: &'static str,
    ) -> Result<BTreeSet<String>, KernelError> {
        let mut names = BTreeSet::new();
        self.dump_table(family, kinds, step, &[], |message| match message {
            None => names.clear(),
            Some(message) => names.extend(decode::text(message, uapi::NFTA_NAME).map(str::to_owned)),
        })?;
        Ok(names)
    }

    fn dump_sets(&mut self, family: Family, sets: &[SetDef], snapshot: &mut Snapshot) -> Result<(), KernelError> {
        let wanted: BTreeMap<SetName, Expected> = sets
            .iter()
            .filter_map(|set| Some((set.name, Expected::of(family, Operation::AddSet(set.clone()))?)))
            .collect();
        let mut same = BTreeSet::new();
        let mut other = BTreeSet::new();
        let mut foreign = BTreeSet::new();
        self.dump_table(family, (msg::GETSET, msg::NEWSET), "list sets", &[], |message| {
            let Some(message) = message else {
                same.clear();
                other.clear();
                foreign.clear();
                return;
            };
            let name = decode::text(message, uapi::NFTA_NAME).unwrap_or_default();
            match SetName::parse(name).and_then(|name| wanted.get_key_value(&name)) {
                Some((name, wanted)) if wanted.is_set(message) => same.insert(*name),
                Some((name, _)) => other.insert(*name),
                None => foreign.insert(name.to_owned()),
            };
        })?;
        snapshot.sets = same;
        snapshot.other_sets = other;
        snapshot.foreign_sets = foreign;
        Ok(())
    }

    fn dump_chains(
        &mut self,
        family: Family,
        chains: &[Chain],
        on_demand: &dyn Fn(ChainName) -> Option<Chain>,
        snapshot: &mut Snapshot,
    ) -> Result<(), KernelError> {
        // Chains and rules are two dumps; a change in between would look like a chain with other rules, which is then
        // put right.
        let mut attached: BTreeMap<ChainName, Chain> = BTreeMap::new();
        let (mut other, mut foreign) = (BTreeSet::new(), BTreeSet::new());
        self.dump_table(family, (msg::GETCHAIN, msg::NEWCHAIN), "list chains", &[], |message| {
            let Some(message) = message else {
                attached.clear();
                other.clear();
                foreign.clear();
                return;
            };
            let text = decode::text(message, uapi::NFTA_CHAIN_NAME).unwrap_or_default();
            let wanted = ChainName::parse(text)
                .and_then(|name| chains.iter().find(|chain| chain.name == name).cloned().or_else(|| on_demand(name)));
            let Some(wanted) = wanted else {
                foreign.insert(text.to_owned());
                return;
            };
            // A regular chain says nothing about a hook, so it has to be asked for one.
            let is_base = decode::has(message, uapi::NFTA_CHAIN_HOOK);
            let same = Expected::of(family, Operation::AddChain(wanted.clone())).is_some_and(|w| w.is(message, &[]));
            if same && is_base == wanted.hook.is_some() {
                attached.insert(wanted.name, wanted);
            } else {
                other.insert(wanted.name);
            }
        })?;

        let wanted: BTreeMap<ChainName, Vec<Expected>> = attached
            .values()
            .map(|chain| (chain.name, Expected::all(family, Operation::AddRules(chain.clone())).unwrap_or_default()))
            .collect();
        // How many rules of a chain came so far, and whether all were right.
        let mut seen: BTreeMap<ChainName, (usize, bool)> = BTreeMap::new();
        self.dump_table(family, (msg::GETRULE, msg::NEWRULE), "list rules", &[], |message| {
            let Some(message) = message else { return seen.clear() };
            let name = decode::text(message, uapi::NFTA_NAME).and_then(ChainName::parse);
            let Some((name, wanted)) = name.and_then(|name| wanted.get_key_value(&name)) else { return };
            let (count, right) = seen.entry(*name).or_insert((0, true));
            *right &= wanted.get(*count).is_some_and(|wanted| wanted.is_rule(message));
            *count += 1;
        })?;
        for (name, wanted) in &wanted {
            if seen.get(name).copied().unwrap_or((0, true)) == (wanted.len(), true) {
                snapshot.chains.insert(*name);
            } else {
                snapshot.other_rules.insert(*name);
            }
        }
        snapshot.other_chains = other;
        snapshot.foreign_chains = foreign;
        Ok(())
    }

    /// Sends a batch, or as much of it as `bytes` are, and waits for the kernel's word about it. `words` names the object
    /// of a part; `echo` gets what the kernel says besides.
    fn exchange(
        &mut self,
        batch: &Batch,
        bytes: &[u8],
        words: impl Fn(usize, Option<usize>) -> String,
        mut echo: impl FnMut(&Message<'_>),
    ) -> Result<(), CommitError> {
        self.socket.send(bytes).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => CommitError::Permission,
            Some(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => CommitError::Busy,
            // Too large for the socket's buffer: nothing was sent.
            Some(Errno::EMSGSIZE) => CommitError::Refused {
                operation: 0,
                object: format!(
                    "a batch of {} bytes, which is more than net.core.wmem_max allows",
                    batch.bytes().len()
                ),
                source: error,
            },
            _ => CommitError::Unknown(error),
        })?;
        // Sequence number, errno, and where in the message the culprit is.
        let mut failure: Option<(u32, i32, Option<usize>)> = None;
        let mut lost = None;
        let mut answered = false;
        while !answered {
            let bytes = match self.socket.receive() {
                Ok(bytes) => bytes,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => continue,
                    // Answers were lost, but those that fitted can still be read, and the first error is what counts.
                    Some(Errno::ENOBUFS) if lost.is_none() => {
                        lost = Some(error);
                        continue;
                    }
                    _ if failure.is_some() => break,
                    _ => return Err(CommitError::Unknown(lost.unwrap_or(error))),
                },
            };
            for message in messages(bytes) {
                let Ok(message) = message else {
                    return Err(CommitError::Unknown(io::Error::other("malformed answer")));
                };
                let Some(end) = message.end().filter(|_| batch.contains(message.sequence)) else {
                    echo(&message);
                    continue;
                };
                let of_batch = batch.part(message.sequence).is_none();
                answered |= message.sequence == batch.last_sequence() || (of_batch && end != End::Done);
                // What concerns the batch as a whole (permission, the commit itself) comes before everything else.
                if let End::Errno(errno) = end
                    && (failure.is_none() || of_batch)
                {
                    failure = Some((message.sequence, errno, message.culprit()));
                }
            }
            // After a loss the last answer may be one of the lost; the errors that there are suffice.
            if lost.is_some() && failure.is_some() {
                break;
            }
        }
        let Some((sequence, errno, culprit)) = failure else {
            // Nothing that was read is an error, but an error may have been lost: no, the last message's own answer is a
            // success, and errors before it would have come first.
            return Ok(());
        };
        Err(match Errno::from_raw(errno) {
            Errno::EPERM | Errno::EACCES => CommitError::Permission,
            Errno::EAGAIN | Errno::ERESTART | Errno::EINTR => CommitError::Busy,
            _ => {
                let part = batch.part(sequence);
                let item = part.and_then(|part| match part.items.len() {
                    1 => Some(part.items.start),
                    _ => batch.element_at(part, culprit?),
                });
                let operation = part.map_or(0, |part| part.operation);
                let object = match part {
                    Some(part) => words(part.operation, item),
                    None => "the transaction".to_owned(),
                };
                CommitError::Refused { operation, object, source: io::Error::from_raw_os_error(errno) }
            }
        })
    }
}

impl Kernel for LinuxKernel {
    fn table(&self) -> TableName {
        self.table
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        let operations = transaction.len();
        if operations == 0 {
            return Ok(Committed { operations, bytes: 0, elapsed: Duration::ZERO, unheard: false });
        }
        let socket = self.listener.is_some().then_some(&mut self.socket);
        let mut deleted = Deleted::by(self.table, transaction, socket);
        let batch =
            encode(self.table, transaction, self.socket.next_sequence(), deleted.is_echoed()).map_err(refuse)?;
        self.socket.used_sequence(batch.last_sequence());
        let start = Instant::now();
        let audience = self.audience.clone();
        let table = self.table;
        let words = |operation, item| words(table, transaction, operation, item);
        let echo = |message: &Message<'_>| deleted.echo(message);
        let send = || self.exchange(&batch, batch.bytes(), words, echo);
        let (done, missed) = if operations < LARGE { (send(), false) } else { audience.without(send) };
        if let Err(error) = done {
            let refused = matches!(error, CommitError::Permission);
            let owner = if refused { self.owner(transaction.family) } else { None };
            return Err(owner.map_or(error, CommitError::Owned));
        }
        // The kernel leaves out 0 (`nf_tables_commit`).
        self.generation = self.generation.map(|generation| generation.checked_add(1).unwrap_or(1));
        let elapsed = start.elapsed();
        if let (Some(listener), counts @ [_, ..]) = (&mut self.listener, deleted.counts()) {
            listener(counts.to_vec(), Instant::now());
        }
        let unheard = missed && !self.is_undisturbed();
        Ok(Committed { operations, bytes: batch.bytes().len(), elapsed, unheard })
    }

    fn dump(
        &mut self,
        family: Family,
        sets: &[SetDef],
        chains: &[Chain],
        on_demand: &dyn Fn(ChainName) -> Option<Chain>,
    ) -> Result<Snapshot, KernelError> {
        self.note_generation()?;
        self.disturbed[family] = false;
        let Some(Table { flags: table_flags, owner }) = table::ask(&mut self.socket, family, self.table.as_str())?
        else {
            return Ok(Snapshot::default());
        };
        let owner = self.other_owner(owner);
        let mut snapshot = Snapshot { table: true, table_flags, owner, ..Snapshot::default() };
        self.dump_sets(family, sets, &mut snapshot)?;
        self.dump_chains(family, chains, on_demand, &mut snapshot)?;
        for (kinds, what) in
            [((msg::GETOBJ, msg::NEWOBJ), "object"), ((msg::GETFLOWTABLE, msg::NEWFLOWTABLE), "flowtable")]
        {
            let names = self.names(family, kinds, "list objects")?;
            snapshot.foreign_other.extend(names.into_iter().map(|name| format!("{what} {name}")));
        }
        Ok(snapshot)
    }

    fn read_elements(
        &mut self,
        family: Family,
        set: &SetDef,
        each: &mut dyn FnMut(Option<Element>),
    ) -> Result<BTreeSet<String>, KernelError> {
        let mut foreign = BTreeSet::new();
        let texts = [(uapi::NFTA_NAME, set.name.as_str())];
        self.dump_table(family, (msg::GETSETELEM, msg::NEWSETELEM), "read a set", &texts, |message| {
            let Some(message) = message else {
                foreign.clear();
                return each(None);
            };
            for element in decode::elements(message, family, set) {
                match element {
                    Ok(element) => each(Some(element)),
                    Err(words) => drop(foreign.insert(words)),
                }
            }
        })?;
        Ok(foreign)
    }

    fn frontend_counts(&mut self, family: Family) -> Result<Vec<FrontendCount>, KernelError> {
        let mut counts = Vec::new();
        for set in SetName::ENTRIES {
            let (texts, begun) = ([(uapi::NFTA_NAME, set.as_str())], counts.len());
            let kinds = (msg::GETSETELEM, msg::NEWSETELEM);
            self.dump_table(family, kinds, "read counters", &texts, |message| match message {
                None => counts.truncate(begun),
                Some(message) => counts.extend(counts::counts(message, family, set)),
            })?;
        }
        Ok(counts)
    }

    fn frontend_counts_of(&mut self, family: Family, keys: &[FrontendKey]) -> Result<Vec<FrontendCount>, KernelError> {
        counts::of(&mut self.socket, self.table, family, keys)
    }

    fn holds(&mut self, family: Family, set: &SetDef, element: &Element) -> Result<bool, KernelError> {
        let mut found = false;
        get(&mut self.socket, self.table, family, set.name, &[&element.key], |message| {
            found |= decode::elements(message, family, set).any(|it| it.as_ref() == Ok(element));
        })?;
        Ok(found)
    }

    fn find(&mut self, family: Family, set: &SetDef, keys: &[Key]) -> Result<Vec<Option<Element>>, KernelError> {
        let mut one = |key| look_up(&mut self.socket, self.table, family, set, key);
        let found = keys.iter().map(&mut one).collect::<Result<Vec<_>, _>>()?;
        if found.contains(&None) && stands_for_all(&mut self.socket, self.table, family, set)? {
            return Err(KernelError::Strange(format!("{}, element *", set.name)));
        }
        // That a range is found by what is in it, nobody has promised: before there is none, all are looked at.
        if set.interval && found.contains(&None) { look_through(self, family, set, keys) } else { Ok(found) }
    }

    fn client(&mut self, family: Family, key: &Key) -> Result<Option<Kept>, KernelError> {
        let set = base::set(SetName::Affinity);
        let mut found = None;
        get(&mut self.socket, self.table, family, set.name, &[key], |message| {
            found = found.or(decode::kept(message, family, &set).next());
        })?;
        Ok(found)
    }

    fn chains(&mut self, family: Family) -> Result<Vec<Result<Chain, Unread>>, KernelError> {
        for _ in 0..ATTEMPTS {
            let before = self.ask_generation()?;
            let found = Found::read(family, |kinds, step, each| self.dump_table(family, kinds, step, &[], each))?;
            if self.ask_generation()? == before {
                return Ok(found.into_chains());
            }
        }
        Err(KernelError::Restless)
    }

    fn kept(
        &mut self,
        family: Family,
        patience: Duration,
        wanted: &mut dyn FnMut(&Remembered) -> bool,
    ) -> Result<KeptClients, KernelError> {
        let until = Instant::now() + patience;
        let set = base::set(SetName::Affinity);
        let texts = [(uapi::NFTA_TABLE, self.table.as_str()), (uapi::NFTA_NAME, set.name.as_str())];
        let request = Request { kind: msg::GETSETELEM, family: protocol_family(family), dump: true, texts: &texts };
        let mut clients = BTreeMap::new();
        let mut complete = false;
        while !complete && Instant::now() < until {
            let mut seen = BTreeSet::new();
            let mut twice = false;
            // What is not read of a dump goes with its socket.
            let answer = request.ask_while(
                &mut open()?,
                || Instant::now() < until,
                |message| {
                    for kept in decode::kept(message, family, &set).filter(|kept| wanted(&kept.client)) {
                        let Remembered { client, destination, protocol, port, .. } = kept.client;
                        let key = (client, destination, protocol, port);
                        // While the kernel resizes a hash table it may show an element twice, and another one not at all.
                        twice |= !seen.insert(key);
                        clients.insert(key, kept);
                    }
                },
            )?;
            complete = match answer {
                Ok(taken) => taken == Taken::All && !twice,
                Err(NOT_THERE) => true,
                Err(errno) => return Err(unexpected("read the clients", errno)),
            };
        }
        Ok(KeptClients { clients: clients.into_values().collect(), complete })
    }

    fn undisturbed(&mut self, family: Family) -> Result<bool, KernelError> {
        self.note_generation()?;
        Ok(!std::mem::take(&mut self.disturbed[family]))
    }
}

fn refuse(error: EncodeError) -> CommitError {
    let EncodeError { operation, object, reason } = error;
    CommitError::Refused { operation, object, source: io::Error::new(io::ErrorKind::InvalidInput, reason) }
}
