//! Whose turn it is: tenants in the order in which they were named, each once, and none twice at a time. Pure.

use std::collections::{HashSet, VecDeque};

use bulkhead_bus::TenantId;

#[derive(Debug, Default)]
pub struct Queue {
    order: VecDeque<TenantId>,
    waiting: HashSet<TenantId>,
    running: HashSet<TenantId>,
    /// Named again while they were at it.
    again: HashSet<TenantId>,
}

impl Queue {
    pub fn add(&mut self, tenant: TenantId) {
        if self.running.contains(&tenant) {
            self.again.insert(tenant);
        } else if self.waiting.insert(tenant) {
            self.order.push_back(tenant);
        }
    }

    /// The next one; until [`Self::done`] it is not taken again.
    pub fn take(&mut self) -> Option<TenantId> {
        let tenant = self.order.pop_front()?;
        self.waiting.remove(&tenant);
        self.running.insert(tenant);
        Some(tenant)
    }

    /// Behind all others, where it was named again.
    pub fn done(&mut self, tenant: TenantId) {
        self.running.remove(&tenant);
        if self.again.remove(&tenant) {
            self.add(tenant);
        }
    }

    pub fn clear(&mut self) {
        self.order.clear();
        self.waiting.clear();
        self.again.clear();
    }

    #[must_use]
    pub fn waiting(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn everybody_has_a_turn_however_often_one_is_named() {
        let [one, two, three] = [1, 2, 3].map(|number| TenantId::new(Uuid::from_u128(number)));
        let mut queue = Queue::default();
        [one, one, two, one, three].into_iter().for_each(|tenant| queue.add(tenant));
        assert_eq!((queue.waiting(), queue.take()), (3, Some(one)));
        [one, one].into_iter().for_each(|tenant| queue.add(tenant));
        assert_eq!(queue.take(), Some(two));
        queue.done(one);
        assert_eq!([queue.take(), queue.take(), queue.take()], [Some(three), Some(one), None]);
        queue.done(two);
        assert_eq!(queue.take(), None);
    }
}
