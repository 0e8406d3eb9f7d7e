//! Clients that are remembered, without a kernel.

use std::time::Duration;

use crate::model::Family;
use crate::nftables::{Clients, KernelError, ReadClients, Slice};
use crate::ruleset::read::Remembered;

/// The clients of both families. Those of a family are read in slices of the size of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InMemoryClients {
    /// They.
    pub clients: Vec<Remembered>,
    /// What the kernel says of their number, if it counts them.
    pub count: Option<usize>,
}

impl ReadClients for InMemoryClients {
    fn count(&mut self, _: Family) -> Result<Option<usize>, KernelError> {
        Ok(self.count)
    }

    fn read(&mut self, family: Family, each: &mut dyn FnMut(Slice) -> bool) -> Result<Clients, KernelError> {
        let clients = self.clients.iter().filter(|client| Family::of(client.client) == family);
        let clients: Vec<Remembered> = clients.copied().collect();
        let took = Duration::ZERO;
        let torn = !clients.chunks(470).all(|some| each(Slice { clients: some.to_vec(), took }));
        Ok(Clients { count: clients.len(), torn, took })
    }
}
