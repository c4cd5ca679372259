//! Finds where a JSON value ends, byte by byte, and refuses at the first wrong byte.
//!
//! A request may arrive in any number of pieces. Each byte is looked at once, so a peer that sends one byte at a time costs no more
//! than one that sends all at once.

/// What one value may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Containers within each other.
    pub depth: usize,
    /// Values, where an object or array counts for its beginning and its end, and a key counts for one.
    pub values: usize,
}

impl Limits {
    /// What a client of the socket may send.
    pub const REQUEST: Limits = Limits { depth: 64, values: 8192 };
    /// What a configuration file may hold: trusted, but not endless.
    pub const FILE: Limits = Limits { depth: 64, values: 8 << 20 };
}

/// Result of feeding bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// All bytes consumed, the value goes on.
    More,
    /// The value ends before this index of the slice just fed.
    End(usize),
    /// Not JSON, or past a limit: what is wrong.
    Error(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum At {
    Value,
    FirstElement,
    FirstKey,
    Key,
    Colon,
    After,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    Hex {
        key: bool,
        left: u8,
    },
    /// Continuation bytes of a UTF-8 sequence; the first of them must lie in `low..=high`.
    Utf8 {
        key: bool,
        left: u8,
        low: u8,
        high: u8,
    },
    Literal(&'static [u8]),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exp,
    ExpSign,
    ExpDigits,
    Failed(&'static str),
}

/// The state between two pieces of input.
#[derive(Debug)]
pub struct Scanner {
    at: At,
    /// One entry per open container: true for an object.
    open: Vec<bool>,
    values: usize,
    limits: Limits,
    started: bool,
}

impl Scanner {
    /// A scanner at the start of a value.
    pub fn new(limits: Limits) -> Scanner {
        Scanner { at: At::Value, open: Vec::new(), values: 0, limits, started: false }
    }

    /// Whether a value has begun.
    pub fn started(&self) -> bool {
        self.started
    }

    /// No more input comes: a number at the top level ends here, anything else is cut short.
    pub fn finish(&self) -> bool {
        self.open.is_empty() && matches!(self.at, At::Zero | At::Digits | At::Fraction | At::ExpDigits)
    }

    /// Looks at more input. After `End` or `Error` the scanner has to be made anew.
    pub fn feed(&mut self, input: &[u8]) -> Scan {
        let mut i = 0;
        while i < input.len() {
            let byte = input[i];
            match self.step(byte) {
                Ok(Step::Next) => i += 1,
                Ok(Step::Again) => {}
                Ok(Step::EndAfter) => return Scan::End(i + 1),
                Ok(Step::EndBefore) => return Scan::End(i),
                Err(why) => {
                    self.at = At::Failed(why);
                    return Scan::Error(why);
                }
            }
        }
        Scan::More
    }

    fn step(&mut self, byte: u8) -> Result<Step, &'static str> {
        let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.at {
            At::Value | At::FirstElement | At::FirstKey | At::Key | At::Colon | At::After if blank => Ok(Step::Next),
            At::FirstElement if byte == b']' => self.close(false),
            At::Value | At::FirstElement => self.begin(byte),
            At::FirstKey if byte == b'}' => self.close(true),
            At::FirstKey | At::Key => {
                if byte != b'"' {
                    return Err("a key in double quotes is expected");
                }
                self.count()?;
                self.go(At::Text { key: true })
            }
            At::Colon if byte == b':' => self.go(At::Value),
            At::Colon => Err("':' is expected after a key"),
            At::After => match (byte, self.open.last()) {
                (b',', Some(true)) => self.go(At::Key),
                (b',', Some(false)) => self.go(At::Value),
                (b'}', Some(true)) => self.close(true),
                (b']', Some(false)) => self.close(false),
                _ => Err("',' or the end of the object or array is expected"),
            },
            At::Text { key } => match byte {
                b'"' if key => self.go(At::Colon),
                b'"' => self.value_done(Step::EndAfter),
                b'\\' => self.go(At::Escape { key }),
                0..=0x1f => Err("a control character in a string has to be escaped"),
                0x20..=0x7f => Ok(Step::Next),
                0xc2..=0xdf => self.go(At::Utf8 { key, left: 1, low: 0x80, high: 0xbf }),
                0xe0 => self.go(At::Utf8 { key, left: 2, low: 0xa0, high: 0xbf }),
                0xed => self.go(At::Utf8 { key, left: 2, low: 0x80, high: 0x9f }),
                0xe1..=0xef => self.go(At::Utf8 { key, left: 2, low: 0x80, high: 0xbf }),
                0xf0 => self.go(At::Utf8 { key, left: 3, low: 0x90, high: 0xbf }),
                0xf1..=0xf3 => self.go(At::Utf8 { key, left: 3, low: 0x80, high: 0xbf }),
                0xf4 => self.go(At::Utf8 { key, left: 3, low: 0x80, high: 0x8f }),
                _ => Err("a string is not valid UTF-8"),
            },
            At::Utf8 { key, left, low, high } => {
                if !(low..=high).contains(&byte) {
                    return Err("a string is not valid UTF-8");
                }
                self.go(if left == 1 {
                    At::Text { key }
                } else {
                    At::Utf8 { key, left: left - 1, low: 0x80, high: 0xbf }
                })
            }
            At::Escape { key } => match byte {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.go(At::Text { key }),
                b'u' => self.go(At::Hex { key, left: 4 }),
                _ => Err("unknown escape in a string"),
            },
            At::Hex { key, left } => {
                if !byte.is_ascii_hexdigit() {
                    return Err("\\u needs four hexadecimal digits");
                }
                self.go(if left == 1 { At::Text { key } } else { At::Hex { key, left: left - 1 } })
            }
            At::Literal(rest) => {
                if rest[0] != byte {
                    return Err("only null, true and false may stand without quotes");
                }
                if rest.len() == 1 { self.value_done(Step::EndAfter) } else { self.go(At::Literal(&rest[1..])) }
            }
            At::Minus => match byte {
                b'0' => self.go(At::Zero),
                b'1'..=b'9' => self.go(At::Digits),
                _ => Err("a digit is expected after '-'"),
            },
            At::Zero | At::Digits | At::Fraction | At::ExpDigits => self.number(byte),
            At::Point => match byte {
                b'0'..=b'9' => self.go(At::Fraction),
                _ => Err("a digit is expected after the decimal point"),
            },
            At::Exp if matches!(byte, b'+' | b'-') => self.go(At::ExpSign),
            At::Exp | At::ExpSign => match byte {
                b'0'..=b'9' => self.go(At::ExpDigits),
                _ => Err("a digit is expected in an exponent"),
            },
            At::Failed(why) => Err(why),
        }
    }

    fn number(&mut self, byte: u8) -> Result<Step, &'static str> {
        match (self.at, byte) {
            (At::Zero, b'0'..=b'9') => Err("a number may not begin with 0"),
            (At::Digits | At::Fraction | At::ExpDigits, b'0'..=b'9') => Ok(Step::Next),
            (At::Zero | At::Digits, b'.') => self.go(At::Point),
            (At::Zero | At::Digits | At::Fraction, b'e' | b'E') => self.go(At::Exp),
            // The number ended one byte ago; this byte belongs to what follows.
            _ => {
                self.value_done(Step::EndBefore).map(|step| if matches!(step, Step::Next) { Step::Again } else { step })
            }
        }
    }

    fn begin(&mut self, byte: u8) -> Result<Step, &'static str> {
        self.started = true;
        self.count()?;
        match byte {
            b'{' | b'[' => {
                if self.open.len() == self.limits.depth {
                    return Err("nested too deeply");
                }
                self.open.push(byte == b'{');
                self.go(if byte == b'{' { At::FirstKey } else { At::FirstElement })
            }
            b'"' => self.go(At::Text { key: false }),
            b't' => self.go(At::Literal(b"rue")),
            b'f' => self.go(At::Literal(b"alse")),
            b'n' => self.go(At::Literal(b"ull")),
            b'-' => self.go(At::Minus),
            b'0' => self.go(At::Zero),
            b'1'..=b'9' => self.go(At::Digits),
            _ => Err("not the beginning of a JSON value"),
        }
    }

    fn close(&mut self, object: bool) -> Result<Step, &'static str> {
        if self.open.pop() != Some(object) {
            return Err("brackets do not match");
        }
        self.count()?;
        self.value_done(Step::EndAfter)
    }

    fn value_done(&mut self, at_top: Step) -> Result<Step, &'static str> {
        self.at = At::After;
        Ok(if self.open.is_empty() { at_top } else { Step::Next })
    }

    fn count(&mut self) -> Result<(), &'static str> {
        self.values += 1;
        if self.values > self.limits.values { Err("too many values in one request") } else { Ok(()) }
    }

    fn go(&mut self, at: At) -> Result<Step, &'static str> {
        self.at = at;
        Ok(Step::Next)
    }
}

enum Step {
    Next,
    Again,
    EndAfter,
    EndBefore,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &[u8]) -> Scan {
        Scanner::new(Limits::REQUEST).feed(text)
    }

    #[test]
    fn a_value_ends_where_it_ends() {
        assert_eq!(scan(b" {\"a\":[1,2,{}]} tail"), Scan::End(15));
        assert_eq!(scan(b"12 "), Scan::End(2));
        assert_eq!(scan(b"[]{"), Scan::End(2));
        assert_eq!(scan(b"\"x\\u00e9\""), Scan::End(9));
        assert_eq!(scan(b"{\"a\":1"), Scan::More);
        assert_eq!(scan(b"[1,-0.5e+3]"), Scan::End(11));
    }

    #[test]
    fn a_wrong_byte_is_refused_at_once() {
        for bad in [
            &b"{a"[..],
            b"{\"a\" 1",
            b"[1 2",
            b"[1,]",
            b"{,",
            b"}",
            b"]",
            b"tru3",
            b"01",
            b"1.e",
            b"-x",
            b"\"\\q",
            b"\"\n",
            b"\"\xff",
            b"\"\xed\xa0\x80",
            b"{\"a\":1]",
            b"\"\\u12g",
            b"'",
            b"+1",
        ] {
            assert!(matches!(scan(bad), Scan::Error(_)), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn depth_and_count_are_bounded() {
        assert_eq!(scan(&[b'['; 64]), Scan::More);
        assert_eq!(scan(&[b'['; 65]), Scan::Error("nested too deeply"));
        let many = format!("[{}1]", "1,".repeat(8189));
        assert_eq!(scan(many.as_bytes()), Scan::End(many.len()));
        assert!(matches!(scan(format!("[{}1]", "1,".repeat(8190)).as_bytes()), Scan::Error(_)));
    }

    #[test]
    fn pieces_make_no_difference() {
        let text = "{\"k\u{e9}\":[null,true,false,-1.5e-3,\"\u{1d11e}\\ud834\\udd1e\"]}x".as_bytes();
        let whole = scan(text);
        let mut scanner = Scanner::new(Limits::REQUEST);
        for (i, byte) in text.iter().enumerate() {
            match scanner.feed(&[*byte]) {
                Scan::More => {}
                Scan::End(n) => return assert_eq!(whole, Scan::End(i + n)),
                Scan::Error(why) => panic!("{why}"),
            }
        }
        panic!("no end found");
    }
}
