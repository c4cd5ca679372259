//! Basic authentication: one user, one password.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Bytes of a credentials file at most.
const MAX_FILE: u64 = 1024;

/// As clients write it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a client must present.
#[derive(Clone)]
pub struct Credentials {
    /// `user:password`
    pair: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// Takes `user:password`; a newline at its end does not count.
    ///
    /// # Errors
    /// What is wrong with the text; never the text.
    pub fn parse(text: &str) -> Result<Credentials, &'static str> {
        let pair = text.strip_suffix('\n').unwrap_or(text);
        let pair = pair.strip_suffix('\r').unwrap_or(pair);
        if pair.chars().any(char::is_control) {
            return Err("it has a control character or more than one line; write one line, USER:PASSWORD");
        }
        match pair.split_once(':') {
            Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                Ok(Credentials { pair: pair.as_bytes().to_vec() })
            }
            Some(_) => Err("user or password is empty; write one line, USER:PASSWORD"),
            None => Err("it has no colon; write one line, USER:PASSWORD"),
        }
    }

    /// Reads a file that nobody but its owner can.
    ///
    /// # Errors
    /// One line with the path, what is wrong and what to do.
    pub fn read(path: &Path) -> io::Result<Credentials> {
        let explain = |kind, why: &str| io::Error::new(kind, format!("credentials {}: {why}", path.display()));
        // A FIFO in its place must not hold up the start.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nonblock)
            .open(path)
            .map_err(|e| explain(e.kind(), &e.to_string()))?;
        let meta = file.metadata()?;
        let mode = meta.permissions().mode() & 0o7777;
        if !meta.is_file() || meta.len() > MAX_FILE {
            return Err(explain(io::ErrorKind::InvalidData, "it is not a file of one line, USER:PASSWORD"));
        }
        if mode & 0o077 != 0 {
            return Err(explain(
                io::ErrorKind::PermissionDenied,
                &format!("others may open it (mode {mode:04o}); chmod 600 and choose a new password"),
            ));
        }
        let mut text = String::new();
        file.by_ref().take(MAX_FILE).read_to_string(&mut text).map_err(|e| explain(e.kind(), &e.to_string()))?;
        Credentials::parse(&text).map_err(|why| explain(io::ErrorKind::InvalidData, why))
    }

    /// Whether the value of an `Authorization` field is right. How long that takes tells nothing about what would be right.
    pub fn accept(&self, field: &[u8]) -> bool {
        let Some((scheme, rest)) = field.split_at_checked(6) else { return false };
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return false;
        }
        BASE64.decode(rest.trim_ascii()).is_ok_and(|given| same(&given, &self.pair))
    }
}

/// Compares in a time that depends on the length of `given` only.
fn same(given: &[u8], secret: &[u8]) -> bool {
    let mut differ = given.len() ^ secret.len();
    for (byte, wanted) in given.iter().zip(secret.iter().cycle()) {
        differ |= usize::from(std::hint::black_box(byte ^ wanted));
    }
    std::hint::black_box(differ) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_pair_is_accepted_and_no_other() {
        let credentials = Credentials::parse("spdkuser:spdk:pass\n").unwrap();
        let try_pair = |pair: &str| {
            credentials.accept(format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair)).as_bytes())
        };
        assert!(try_pair("spdkuser:spdk:pass"));
        for wrong in [
            "",
            ":",
            "spdkuser:",
            "spdkuser:spdk:pas",
            "spdkuser:spdk:pass2",
            "Spdkuser:spdk:pass",
            "spdkuser:spdk:passspdkuser:spdk:pass",
        ] {
            assert!(!try_pair(wrong), "{wrong}");
        }
        assert!(credentials.accept(b"bAsIc   c3Bka3VzZXI6c3BkazpwYXNz"));
        assert!(credentials.accept(b"Basic c3Bka3VzZXI6c3BkazpwYXNz "));
        assert!(!credentials.accept(b"Basic"));
        assert!(!credentials.accept(b"Basic spdkuser:spdk:pass"));
        assert!(!credentials.accept(b"Bearer c3Bka3VzZXI6c3BkazpwYXNz"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let path = std::env::temp_dir().join(format!("longshore-auth-{}", std::process::id()));
        std::fs::write(&path, "u:p\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        let error = Credentials::read(&path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
        mode(0o600);
        assert!(Credentials::read(&path).unwrap().accept(b"Basic dTpw"));
        for (text, why) in [
            ("u", "no colon"),
            (":p", "empty"),
            ("u:", "empty"),
            ("u:p\nv:q\n", "more than one line"),
            ("", "no colon"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Credentials::read(&path).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("longshore-auth"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Credentials::read(Path::new("/dev/null")).is_err());
    }
}
