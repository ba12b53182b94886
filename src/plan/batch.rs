//! Steps put together into transactions.

use std::borrow::Cow;
use std::ops::Range;

use super::{InstanceWrite, NodeWrite, Removal, Step};
use crate::consul::wire;
use crate::consul::{MAX_OPS, Txn, TxnFull, TxnOp};
use crate::model::key::{InstanceKey, Key};
use crate::model::names::NodeName;
use crate::observed::entry::{wire_check, wire_node_check, wire_service};

/// Most operations of ours in one transaction: one of Consul's is left for the fence.
pub const MAX_STEP_OPS: usize = MAX_OPS - 1;

/// Steps that are carried out together, whole or not at all.
///
/// `T` is what the caller wants to know of a step when it is done.
#[derive(Debug)]
pub struct Batch<T> {
    txn: Txn,
    steps: Vec<BatchedStep<T>>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self {
            txn: Txn::new(),
            steps: Vec::new(),
        }
    }
}

/// A step in a batch.
#[derive(Debug)]
pub struct BatchedStep<T> {
    /// The key.
    pub key: Key,
    /// What is done.
    pub step: Step,
    /// Which operations of the transaction do it.
    pub ops: Range<usize>,
    /// What the caller wants to know of it.
    pub tag: T,
}

/// A step that cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Not to this batch; the next one has room.
    Full,
    /// To no batch: it is larger than Consul takes.
    TooLarge,
}

impl<T> Batch<T> {
    /// Whether it has no step.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many steps it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// The transaction and what it stands for.
    #[must_use]
    pub fn into_parts(self) -> (Txn, Vec<BatchedStep<T>>) {
        (self.txn, self.steps)
    }

    /// Room for further operations.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_STEP_OPS.saturating_sub(self.txn.len())
    }

    /// Whether a step for the key is in it.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.steps.iter().any(|step| step.key == *key)
    }

    /// Adds a step, all of its operations or none. A step that writes nothing is passed over.
    pub fn push(&mut self, key: Key, step: Step, tag: T) -> Result<(), Overflow> {
        let ops = ops(&key, &step);
        if ops.is_empty() {
            return Ok(());
        }
        if self.txn.len() + ops.len() > MAX_STEP_OPS {
            return Err(Overflow::Full);
        }
        let pushed = self.txn.push_all(&ops);
        drop(ops);
        let ops = match pushed {
            Ok(ops) => ops,
            Err(TxnFull::TooLarge) => return Err(Overflow::TooLarge),
            Err(TxnFull::Ops | TxnFull::Bytes) => return Err(Overflow::Full),
        };
        self.steps.push(BatchedStep {
            key,
            step,
            ops,
            tag,
        });
        Ok(())
    }
}

fn ops<'a>(key: &'a Key, step: &'a Step) -> Vec<TxnOp<'a>> {
    match (key, step) {
        (Key::Node(name), Step::PutNode(write)) => node_ops(name, write),
        (Key::Node(name), Step::RemoveNode(index)) => vec![TxnOp::NodeDeleteCas {
            name: name.as_ref(),
            index: *index,
        }],
        (Key::Instance(key), Step::Put(write)) => instance_ops(key, write),
        (Key::Instance(key), Step::Remove(Removal { name, index, .. })) => {
            vec![TxnOp::ServiceDeleteCas {
                node: key.node.as_ref(),
                id: key.id.as_ref(),
                service: name,
                index: *index,
            }]
        }
        _ => Vec::new(),
    }
}

fn node_ops<'a>(name: &'a NodeName, write: &'a NodeWrite) -> Vec<TxnOp<'a>> {
    let node = write.node.as_ref().map(|(node, index)| TxnOp::NodeCas {
        node: Cow::Owned(wire::Node {
            name: name.text().clone(),
            address: node.address.clone(),
            meta: node.meta.clone(),
            ..wire::Node::default()
        }),
        index: *index,
    });
    let check = write.check.as_ref().map(|(check, index)| TxnOp::CheckCas {
        check: Cow::Owned(wire_node_check(name.text(), check)),
        index: *index,
    });
    let surplus = write
        .surplus
        .iter()
        .map(|(check_id, index)| TxnOp::CheckDeleteCas {
            node: name.as_ref(),
            check_id,
            service_id: "",
            service: "",
            index: *index,
        });
    node.into_iter().chain(check).chain(surplus).collect()
}

fn instance_ops<'a>(key: &'a InstanceKey, write: &'a InstanceWrite) -> Vec<TxnOp<'a>> {
    let service = write
        .service
        .as_ref()
        .map(|(service, index)| TxnOp::ServiceCas {
            node: key.node.as_ref(),
            service: Cow::Owned(wire_service(key, service)),
            index: *index,
        });
    let checks = write.checks.iter().map(|it| TxnOp::CheckCas {
        check: Cow::Owned(wire_check(key, &write.name, &it.kind, &it.check)),
        index: it.index,
    });
    let surplus = write
        .surplus
        .iter()
        .map(|(check_id, index)| TxnOp::CheckDeleteCas {
            node: key.node.as_ref(),
            check_id,
            service_id: key.id.as_ref(),
            service: &write.name,
            index: *index,
        });
    service.into_iter().chain(checks).chain(surplus).collect()
}
