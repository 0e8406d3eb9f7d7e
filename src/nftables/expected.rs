//! What the kernel's objects are compared with.

use super::decode;
use super::encode::Encoder;
use super::request::NftablesMessage as _;
use super::uapi;
use crate::diff::Operation;
use crate::model::Family;
use crate::netlink::{Attributes, Message};
use crate::ruleset::names::TableName;

/// The message that would make an object, to compare the kernel's with.
pub(super) struct Expected(Vec<u8>);

impl Expected {
    pub(super) fn of(family: Family, operation: Operation) -> Option<Expected> {
        Self::all(family, operation)?.pop()
    }

    pub(super) fn all(family: Family, operation: Operation) -> Option<Vec<Expected>> {
        let mut encoder = Encoder::new(family, TableName::NODE.as_str(), 0);
        encoder.operation(0, &operation).ok()?;
        let batch = encoder.finish();
        let message =
            |at: usize| Message::first(&batch.bytes()[at..]).map(|message| Expected(message.payload.to_vec()));
        batch.parts().iter().map(|part| message(part.at)).collect()
    }

    pub(super) fn is(&self, actual: &Message<'_>, except: &[u16]) -> bool {
        decode::covers(actual.attributes(), self.attributes(), except)
    }

    pub(super) fn is_set(&self, actual: &Message<'_>) -> bool {
        // The number of a set holds within a transaction. The length of a verdict is the kernel's own business.
        let verdict_map = decode::number_in(self.attributes(), uapi::NFTA_SET_DATA_TYPE) == Some(uapi::DATA_VERDICT);
        let except: &[u16] =
            if verdict_map { &[uapi::NFTA_SET_ID, uapi::NFTA_SET_DATA_LEN] } else { &[uapi::NFTA_SET_ID] };
        // A flag that is not wanted shows only where there is one.
        let flags = |attributes| decode::number_in(attributes, uapi::NFTA_SET_FLAGS).unwrap_or(0);
        // An expression that is not wanted as well.
        let has = |attributes: Attributes<'_>| {
            [uapi::NFTA_SET_EXPR, uapi::NFTA_SET_EXPRESSIONS].map(|it| decode::has_in(attributes.clone(), it))
        };
        self.is(actual, except)
            && flags(self.attributes()) == flags(actual.attributes())
            && has(self.attributes()) == has(actual.attributes())
    }

    /// Like [`Expected::is`], and without a comment that is not wanted.
    pub(super) fn is_rule(&self, actual: &Message<'_>) -> bool {
        self.is(actual, &[])
            && decode::has_in(self.attributes(), uapi::NFTA_RULE_USERDATA)
                == decode::has(actual, uapi::NFTA_RULE_USERDATA)
    }

    fn attributes(&self) -> Attributes<'_> {
        Attributes::new(self.0.get(4..).unwrap_or_default(), 0)
    }
}
