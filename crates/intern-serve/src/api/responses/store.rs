//! The latest responses, in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use intern_format::conversation::Message;
use serde_json::Value;

/// Bytes of JSON kept; the oldest responses go first.
const LIMIT: usize = 64 << 20;

/// One response, and what it takes to go on from it.
#[derive(Clone, Debug)]
pub(in crate::api) struct Stored {
    pub response: Value,
    /// Items the client sent.
    pub input: Vec<Value>,
    /// The conversation up to and with the answer, without instructions.
    pub messages: Vec<Message>,
}

/// Remembers responses until newer ones need the room.
#[derive(Default)]
pub(in crate::api) struct Store(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    all: HashMap<String, (Stored, usize)>,
    /// Oldest first; removed ones may still be in it.
    order: VecDeque<String>,
    bytes: usize,
}

impl Store {
    pub fn put(&self, id: &str, stored: Stored) {
        let text = |m: &Message| m.content.len() + 256;
        let size = stored.response.to_string().len()
            + stored.input.iter().map(|i| i.to_string().len()).sum::<usize>()
            + stored.messages.iter().map(text).sum::<usize>();
        let mut inner = self.0.lock().unwrap_or_else(|e| e.into_inner());
        inner.bytes += size;
        inner.all.insert(id.to_string(), (stored, size));
        inner.order.push_back(id.to_string());
        while inner.bytes > LIMIT {
            let Some(oldest) = inner.order.pop_front() else { break };
            inner.forget(&oldest);
        }
    }

    pub fn get(&self, id: &str) -> Option<Stored> {
        let inner = self.0.lock().unwrap_or_else(|e| e.into_inner());
        inner.all.get(id).map(|(stored, _)| stored.clone())
    }

    /// Whether it was there.
    pub fn remove(&self, id: &str) -> bool {
        let mut inner = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let was_there = inner.forget(id);
        inner.order.retain(|other| other != id);
        was_there
    }
}

impl Inner {
    fn forget(&mut self, id: &str) -> bool {
        let Some((_, size)) = self.all.remove(id) else { return false };
        self.bytes -= size;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let store = Store::default();
        let stored =
            |n: usize| Stored { response: "x".repeat(n).into(), input: Vec::new(), messages: Vec::new() };
        store.put("a", stored(10));
        store.put("b", stored(20));
        assert!(store.remove("a") && !store.remove("a") && store.get("a").is_none());
        store.put("c", stored(LIMIT - 60));
        assert!(store.get("b").is_some());
        store.put("d", stored(50));
        assert!(store.get("b").is_none() && store.get("c").is_some() && store.get("d").is_some());
        store.put("e", stored(LIMIT));
        assert_eq!(store.0.lock().unwrap().bytes, 0, "too large to keep, and nothing is left over");
    }
}
