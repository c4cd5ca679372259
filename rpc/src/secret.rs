//! Memory that may hold keys: requests and configurations are received into it, and leave nothing behind when they go.

use std::io::{self, Read};
use std::{fmt, ops};

use zeroize::Zeroize;

/// Bytes that the first allocation has at least.
const FIRST: usize = 4096;

/// A buffer whose bytes are wiped when it is dropped, when it moves because it grows, and when they are taken off its front. What it has beyond
/// its length is zero at all times.
#[derive(Default)]
pub struct Secret {
    memory: Box<[u8]>,
    len: usize,
}

impl Secret {
    /// Adds `bytes` at the end.
    pub fn append(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.memory[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Removes the first `n` bytes.
    ///
    /// # Panics
    ///
    /// If it has fewer.
    pub fn discard(&mut self, n: usize) {
        let left = self.len - n;
        self.memory.copy_within(n..self.len, 0);
        wipe(&mut self.memory[left..self.len]);
        self.len = left;
    }

    /// Adds all that `source` has, without a copy in between.
    ///
    /// # Errors
    ///
    /// Those of `source`; what was read before stays.
    pub fn read_to_end(&mut self, mut source: impl Read) -> io::Result<()> {
        loop {
            if self.len == self.memory.len() {
                self.reserve(1);
            }
            match source.read(&mut self.memory[self.len..]) {
                Ok(0) => return Ok(()),
                Ok(n) => self.len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn reserve(&mut self, more: usize) {
        let need = self.len + more;
        if need <= self.memory.len() {
            return;
        }
        let mut grown = vec![0; need.max(2 * self.memory.len()).max(FIRST)].into_boxed_slice();
        grown[..self.len].copy_from_slice(self);
        wipe(self);
        self.memory = grown;
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(self);
    }
}

impl ops::Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl ops::DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        **self == **other
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.len)
    }
}

/// Wipes `bytes`.
pub(crate) fn wipe(bytes: &mut [u8]) {
    #[cfg(test)]
    watched::note(bytes);
    bytes.zeroize();
}

/// Wipes a text, with what it has room for.
pub(crate) fn wipe_text(text: &mut String) {
    #[cfg(test)]
    watched::note(text.as_bytes());
    text.zeroize();
}

/// What was wiped by a test.
#[cfg(test)]
pub(crate) mod watched {
    use std::cell::RefCell;

    use super::Secret;

    thread_local! {
        static WIPED: RefCell<Vec<u8>> = RefCell::default();
    }

    pub(super) fn note(bytes: &[u8]) {
        WIPED.with_borrow_mut(|all| all.extend_from_slice(bytes));
    }

    /// How often `what` was wiped while `run` ran.
    pub(crate) fn times(what: &[u8], run: impl FnOnce()) -> usize {
        WIPED.take();
        run();
        WIPED.take().windows(what.len()).filter(|w| *w == what).count()
    }

    /// Whether everything beyond the length is zero.
    pub(crate) fn is_clean(secret: &Secret) -> bool {
        secret.memory[secret.len..].iter().all(|b| *b == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"00112233445566778899aabbccddeeff";

    #[test]
    fn a_buffer_that_grows_wipes_what_it_leaves_and_one_that_goes_what_it_has() {
        let mut secret = Secret::default();
        secret.append(KEY);
        let grown = watched::times(KEY, || secret.append(&[b' '; FIRST]));
        assert_eq!((grown, &secret[..KEY.len()], secret.len()), (1, KEY, KEY.len() + FIRST));
        assert!(watched::is_clean(&secret) && secret.memory.len() == 2 * FIRST);
        assert_eq!(watched::times(KEY, || secret.append(&[b' '; 7])), 0, "it fits");
        assert_eq!(watched::times(KEY, || drop(secret)), 1);
    }

    #[test]
    fn what_is_taken_off_the_front_is_left_nowhere() {
        let mut secret = Secret::default();
        secret.append(b"{\"id\":1}");
        secret.append(KEY);
        secret.discard(8);
        assert_eq!((&secret[..], watched::is_clean(&secret)), (KEY, true));
        assert_eq!(watched::times(KEY, || secret.discard(KEY.len())), 1);
        assert!(secret.is_empty() && secret.memory.iter().all(|b| *b == 0));
        assert_eq!(format!("{secret:?}"), "Secret(0 bytes)");
    }

    #[test]
    fn a_source_is_read_to_its_end() {
        let text: Vec<u8> = (0..3 * FIRST).map(|i| i as u8).collect();
        let mut secret = Secret::default();
        secret.read_to_end(&text[..]).unwrap();
        assert!(secret[..] == text && watched::is_clean(&secret));
    }
}
