//! Builds the tree of a complete value.

use zeroize::Zeroizing;

use super::{Json, Limits, Scan, Scanner};

/// Why a text is not one JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Byte offset of the fault, as near as known.
    pub offset: usize,
    /// What is wrong.
    pub why: &'static str,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} near byte {}", self.why, self.offset)
    }
}

/// Parses exactly one value with blanks around it (a file, or one framed request).
pub fn parse(text: &[u8]) -> Result<Json, ParseError> {
    let mut scanner = Scanner::new(Limits::FILE);
    let end = match scanner.feed(text) {
        Scan::End(end) => end,
        Scan::More if scanner.finish() => text.len(),
        Scan::More => return Err(ParseError { offset: text.len(), why: "the text ends in the middle of a value" }),
        Scan::Error(why) => {
            // Find the byte again: only error paths pay for it.
            let mut again = Scanner::new(Limits::FILE);
            let offset = text.iter().position(|b| matches!(again.feed(&[*b]), Scan::Error(_))).unwrap_or(0);
            return Err(ParseError { offset, why });
        }
    };
    if let Some(extra) = text[end..].iter().position(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r')) {
        return Err(ParseError { offset: end + extra, why: "something follows the value" });
    }
    build(&text[..end])
}

/// Tree of a text that the scanner has accepted; recursion is bounded by the scanner's depth limit.
pub(crate) fn build(text: &[u8]) -> Result<Json, ParseError> {
    Builder { text, at: 0 }.value()
}

struct Builder<'a> {
    text: &'a [u8],
    at: usize,
}

impl Builder<'_> {
    fn fail<T>(&self, why: &'static str) -> Result<T, ParseError> {
        Err(ParseError { offset: self.at, why })
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    fn value(&mut self) -> Result<Json, ParseError> {
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                let mut members = Vec::new();
                loop {
                    match self.peek() {
                        Some(b'}') => break,
                        Some(b',') => self.at += 1,
                        Some(b'"') => {
                            let key = self.string()?;
                            if self.peek() != Some(b':') {
                                return self.fail("':' is expected after a key");
                            }
                            self.at += 1;
                            members.push((key, self.value()?));
                        }
                        _ => return self.fail("a key is expected"),
                    }
                }
                self.at += 1;
                Ok(Json::Object(members))
            }
            Some(b'[') => {
                self.at += 1;
                let mut items = Vec::new();
                loop {
                    match self.peek() {
                        Some(b']') => break,
                        Some(b',') => self.at += 1,
                        Some(_) => items.push(self.value()?),
                        None => return self.fail("the array does not end"),
                    }
                }
                self.at += 1;
                Ok(Json::Array(items))
            }
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b't') => self.literal(4, Json::Bool(true)),
            Some(b'f') => self.literal(5, Json::Bool(false)),
            Some(b'n') => self.literal(4, Json::Null),
            Some(_) => {
                let rest = &self.text[self.at..];
                let len = rest
                    .iter()
                    .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
                    .unwrap_or(rest.len());
                let Ok(number) = std::str::from_utf8(&rest[..len]) else { return self.fail("not a number") };
                if number.is_empty() {
                    return self.fail("not the beginning of a JSON value");
                }
                self.at += len;
                Ok(Json::Number(number.into()))
            }
            None => self.fail("a value is expected"),
        }
    }

    fn literal(&mut self, len: usize, value: Json) -> Result<Json, ParseError> {
        self.at += len;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, ParseError> {
        self.at += 1;
        let Some(raw) = raw_len(&self.text[self.at..]) else { return self.fail("the string does not end") };
        // Unescaped it is no longer, so that it is never moved: it may be a key.
        let mut out = Zeroizing::new(Vec::with_capacity(raw));
        loop {
            let rest = &self.text[self.at.min(self.text.len())..];
            let Some(plain) = rest.iter().position(|b| matches!(b, b'"' | b'\\')) else {
                return self.fail("the string does not end");
            };
            out.extend_from_slice(&rest[..plain]);
            self.at += plain + 1;
            if rest[plain] == b'"' {
                return String::from_utf8(std::mem::take(&mut *out)).or_else(|e| {
                    drop(Zeroizing::new(e.into_bytes()));
                    self.fail("a string is not valid UTF-8")
                });
            }
            let Some(&escape) = self.text.get(self.at) else { return self.fail("the string does not end") };
            self.at += 1;
            let plain = match escape {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    let c = self.unicode()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                other => other,
            };
            out.push(plain);
        }
    }

    fn hex4(&mut self) -> Result<u32, ParseError> {
        let digits = self.text.get(self.at..self.at + 4).and_then(|d| std::str::from_utf8(d).ok());
        let Some(unit) = digits.and_then(|d| u32::from_str_radix(d, 16).ok()) else {
            return self.fail("\\u needs four hexadecimal digits");
        };
        self.at += 4;
        Ok(unit)
    }

    fn unicode(&mut self) -> Result<char, ParseError> {
        let unit = self.hex4()?;
        let code = match unit {
            0xd800..=0xdbff => {
                if self.text.get(self.at..self.at + 2) != Some(b"\\u") {
                    return self.fail("half of a surrogate pair");
                }
                self.at += 2;
                let low = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&low) {
                    return self.fail("half of a surrogate pair");
                }
                0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
            }
            other => other,
        };
        char::from_u32(code).map_or_else(|| self.fail("half of a surrogate pair"), Ok)
    }
}

/// Bytes before the quote that ends a string.
fn raw_len(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Blanks out `//` and `/* */` comments, which configuration files may hold and requests may not. Offsets stay.
pub fn strip_comments(text: &mut [u8]) {
    let (mut i, mut in_string) = (0, false);
    while i < text.len() {
        match (in_string, text[i], text.get(i + 1)) {
            (true, b'\\', _) => i += 1,
            (_, b'"', _) => in_string = !in_string,
            (false, b'/', Some(b'/')) => {
                let end = text[i..].iter().position(|b| *b == b'\n').map_or(text.len(), |n| i + n);
                text[i..end].fill(b' ');
                i = end;
            }
            (false, b'/', Some(b'*')) => {
                let end = text[i + 2..].windows(2).position(|w| w == b"*/").map_or(text.len(), |n| i + n + 4);
                text[i..end].fill(b' ');
                i = end;
            }
            _ => {}
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_unescaped() {
        assert_eq!(parse(br#" "a\n\"\/\u00e9\ud834\udd1e" "#).unwrap(), Json::String("a\n\"/\u{e9}\u{1d11e}".into()));
        assert_eq!(parse(br#""\ud834x""#).unwrap_err().why, "half of a surrogate pair");
        assert_eq!(parse(br#""\udd1e""#).unwrap_err().why, "half of a surrogate pair");
    }

    #[test]
    fn the_offset_of_a_fault_is_told() {
        assert_eq!(parse(b"{\"a\": nul}").unwrap_err().offset, 9);
        assert_eq!(parse(b"{} x").unwrap_err(), ParseError { offset: 3, why: "something follows the value" });
        assert_eq!(parse(b"[1").unwrap_err().offset, 2);
        assert_eq!(parse(b" 17").unwrap(), Json::Number("17".into()));
    }

    #[test]
    fn comments_are_blanked_outside_strings() {
        let mut text = b"{ // one\n \"a//b\": /* two */ 1 }".to_vec();
        strip_comments(&mut text);
        assert_eq!(parse(&text).unwrap(), Json::Object(vec![("a//b".into(), Json::Number("1".into()))]));
    }
}
