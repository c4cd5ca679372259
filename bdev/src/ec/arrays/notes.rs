//! What a user asks after: why an array is not started, which devices it does not use, and why members are out.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::ec::event::Event;

/// What is known of one array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    name: String,
    /// Why it is not started.
    held_back: Option<String>,
    /// Devices that were found and are not used, and why.
    pub(super) passed_over: BTreeMap<String, String>,
    /// Why members of this session failed, by slot.
    pub(super) failed: BTreeMap<usize, &'static str>,
    /// Why no request is served any more.
    pub(super) offline: Option<&'static str>,
}

/// What is known of all arrays that were found.
#[derive(Default)]
pub(super) struct Notes(Mutex<BTreeMap<Uuid, Note>>);

impl Notes {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Uuid, Note>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The array is not started.
    pub(super) fn held_back(&self, array: Uuid, name: &str, why: String) {
        self.all().insert(array, Note { name: name.to_owned(), held_back: Some(why), ..Note::default() });
    }

    /// The array is started, without the devices given.
    pub(super) fn started(&self, array: Uuid, name: &str, passed_over: impl IntoIterator<Item = (String, String)>) {
        let note = Note { name: name.to_owned(), passed_over: passed_over.into_iter().collect(), ..Note::default() };
        self.all().insert(array, note);
    }

    /// Something happened to a running array.
    pub(super) fn event(&self, array: Uuid, event: Event) {
        let mut all = self.all();
        let Some(note) = all.get_mut(&array) else { return };
        match event {
            Event::MemberFailed { slot, why } => drop(note.failed.insert(slot, why)),
            Event::Offline { why } => note.offline = Some(why),
            _ => {}
        }
    }

    /// A device was taken into `slot`.
    pub(super) fn joined(&self, array: Uuid, slot: usize, device: &str) {
        if let Some(note) = self.all().get_mut(&array) {
            note.failed.remove(&slot);
            note.passed_over.remove(device);
        }
    }

    /// A running array does not use a device.
    pub(super) fn passed_over(&self, array: Uuid, device: &str, why: String) {
        if let Some(note) = self.all().get_mut(&array) {
            note.passed_over.insert(device.to_owned(), why);
        }
    }

    /// The array was removed.
    pub(super) fn forget(&self, array: Uuid) {
        self.all().remove(&array);
    }

    /// What is known of an array.
    pub(super) fn of(&self, array: Uuid) -> Note {
        self.all().get(&array).cloned().unwrap_or_default()
    }

    /// Why the array of this name or UUID is not started, if its devices are there.
    pub(super) fn why_not(&self, array: &str) -> Option<String> {
        let all = self.all();
        let mut named = all.iter().filter(|(uuid, note)| note.name == array || uuid.to_string() == array);
        named.find_map(|(_, note)| note.held_back.clone())
    }
}
